"""The figures of a study: each metric over the matrix's numeric key and over the layers, the
model's over rounds, and two metrics of the same samples against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedleak.reporting import text
from fedleak.reporting.drawing import Figure, drawing, logarithmic, smoothed
from fedleak.reporting.results import Expectation
from fedleak.reporting.study.results import StudyCell, StudyResults, Value
from fedleak.reporting.study.tables import (
    Course,
    Trade,
    claimed_of,
    courses,
    finite,
    metric_aggregates,
    place,
    telling_keys,
    trades,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SERIES = 10
MOST_NAMES = 40
_LONGEST_NAME = 32
_WIDE = 10
"""From so many times the least on, values are drawn on a logarithmic scale beside others."""
UNIFORM = ("bytes-sent", "refused")
_EXPECTED = {
    "==": ("D", "published"),
    ">=": ("^", "expected at least"),
    "<=": ("v", "expected at most"),
}
"""Marker and words for each way of comparing."""


@dataclass(frozen=True)
class _Point:
    """A cell's place on the axis, what was measured there and what was expected."""

    x: float
    value: Value
    expected: Expectation | None


def figures(results: StudyResults) -> list[Figure]:
    """The model over rounds; what is left of accuracy at which leakage; metrics whose correlation
    is claimed; then each metric that has a finite value and is not the same everywhere."""
    drawn = [
        _draw(results, c.metric, "mean", "round", _by_round(results, c)) for c in courses(results)
    ]
    if len(results.cells) < 2:
        return drawn
    drawn += [_draw_trade(results, trade) for trade in trades(results)]
    drawn += [_draw_pairs(results, expected) for expected in _correlations(results)]
    key = _axis(results)
    for metric, aggregate in metric_aggregates(results).items():
        layered = _by_layer(results, metric, aggregate)
        drawn += [
            _draw_layers(metric, aggregate, layers, there) for layers, there in layered.items()
        ]
        if layered and key is None:
            continue
        series = _series(results, metric, aggregate, key)
        means = {point.value.mean for points in series.values() for point in points}
        # What clients sent, and whether they refused, is mostly the same in all cells.
        if series and (len(means) > 1 or metric not in UNIFORM):
            drawn.append(_draw(results, metric, aggregate, key, series))
    return drawn


def _axis(results: StudyResults) -> str | None:
    """The numeric key with the most values; of several the one that varies fastest."""
    sizes = {
        key: len(set(numbers.values()))
        for key in telling_keys(results)
        if (numbers := results.numbers(key)) is not None
    }
    best = max(sizes.values(), default=0)
    return next((key for key in reversed(sizes) if sizes[key] == best), None) if best > 1 else None


def _series(
    results: StudyResults, metric: str, aggregate: str, key: str | None
) -> dict[str, list[_Point]]:
    """Points by what else sets them apart, ascending."""
    cells = {cell.name: cell for cell in results.cells}
    order = {name: float(position) for position, name in enumerate(cells)}
    places = (results.numbers(key) if key is not None else None) or order
    chosen = [
        value
        for value in results.overall
        if value.metric == metric
        and value.aggregate == aggregate
        and finite(value.mean)
        and value.cell in places
    ]
    attacks = {value.attack for value in chosen}
    series: dict[str, list[_Point]] = {}
    for value in chosen:
        words = _settings(results, cells[value.cell], key) if key is not None else []
        words += [value.attack] if len(attacks) > 1 and value.attack else []
        words += [value.layer] if value.layer else []
        point = _Point(places[value.cell], value, _expected(results, value))
        series.setdefault(", ".join(words), []).append(point)
    return {name: sorted(points, key=lambda point: point.x) for name, points in series.items()}


def _by_layer(
    results: StudyResults, metric: str, aggregate: str
) -> dict[tuple[str, ...], dict[str, list[Value]]]:
    """For each list of layers, the values of each cell and attack that has these layers."""
    cells = {cell.name: cell for cell in results.cells}
    found: dict[tuple[str, str | None], list[Value]] = {}
    for value in results.overall:
        if (value.metric, value.aggregate) == (metric, aggregate) and value.layer is not None:
            found.setdefault((value.cell, value.attack), []).append(value)
    attacks = {attack for _, attack in found}
    groups: dict[tuple[str, ...], dict[str, list[Value]]] = {}
    for (cell, attack), values in found.items():
        layers = tuple(str(value.layer) for value in values)
        name = place(results, cells[cell])
        name += f", {attack}" if len(attacks) > 1 and attack else ""
        if len(layers) > 1:
            groups.setdefault(layers, {})[name] = [v for v in values if finite(v.mean)]
    return groups


def _correlations(results: StudyResults) -> list[Expectation]:
    """Those whose pairs are not all among the pairs of another."""
    claimed = [each for each in results.expectations if each.pairs]
    return [
        one
        for one in claimed
        if not any(
            (one.metric, one.against) == (other.metric, other.against)
            and set(one.cells) < set(other.cells)
            for other in claimed
        )
    ]


def _settings(results: StudyResults, cell: StudyCell, but: str) -> list[str]:
    return [
        f"{results.short_keys[key]} = {cell.settings[key]}"
        for key in telling_keys(results)
        if key != but and key in cell.settings
    ]


def _by_round(results: StudyResults, course: Course) -> dict[str, list[_Point]]:
    """A series for each cell."""
    return {
        place(results, cell): [
            _Point(float(number), value, _expected(results, value))
            for number, value in sorted(course.cells[cell.name].items())
            if finite(value.mean)
        ]
        for cell in results.cells
        if cell.name in course.cells
    }


def _expected(results: StudyResults, value: Value) -> Expectation | None:
    for expected in results.expectations:
        if (
            (expected.metric, expected.layer, expected.round)
            == (value.metric, value.layer, value.round)
            and expected.cells == (value.cell,)
            and expected.against is None
            and (value.attack is None or expected.aggregate == value.aggregate)
            and expected.attack in (None, value.attack)
            and expected.minus is None
        ):
            return expected
    return None


def _draw(
    results: StudyResults,
    metric: str,
    aggregate: str,
    key: str | None,
    series: Mapping[str, Sequence[_Point]],
) -> Figure:
    shown = dict(list(series.items())[:MOST_SERIES])
    title = f"{aggregate} {metric}"
    over = key or "the cells"
    with drawing() as made:
        axes = made.axes
        for index, (name, points) in enumerate(shown.items()):
            _draw_series(axes, name, points, f"C{index}", joined=key is not None)
            if key is not None:
                means = [point.value.mean for point in points]
                _draw_curve(axes, [point.x for point in points], means, f"C{index}")
        axes.set_ylabel(title)
        if key is not None:
            axes.set_xlabel(key)
            places = sorted({point.x for points in shown.values() for point in points})
            if places[0] > 0 and places[-1] / places[0] >= 100:
                logarithmic(axes, "x")
        else:
            axes.set_xlabel("cell")
            names = [_short(place(results, cell)) for cell in results.cells]
            if len(names) <= MOST_NAMES:
                axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    return Figure(
        title=f"{title} over {over}",
        source=made.source,
        alt=f"{title} over {over}; the values stand in the table below",
        left_out=len(series) - len(shown),
    )


def _draw_layers(
    metric: str, aggregate: str, layers: tuple[str, ...], series: Mapping[str, Sequence[Value]]
) -> Figure:
    """Layers in the model's order; through all that was measured of them a LOWESS curve."""
    shown = dict(list(series.items())[:MOST_SERIES])
    with drawing() as made:
        axes = made.axes
        xs: list[float] = []
        ys: list[float] = []
        for index, (name, values) in enumerate(shown.items()):
            places = [layers.index(str(value.layer)) for value in values]
            points = [_Point(x, value, None) for x, value in zip(places, values, strict=True)]
            _draw_series(axes, name, points, f"C{index}", joined=len(shown) == 1)
            xs += places
            ys += [value.mean for value in values]
        if len(shown) > 1:
            _draw_curve(axes, xs, ys, "0.4", label="LOWESS")
        axes.set_ylabel(f"{aggregate} {metric}")
        axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
    title = f"{aggregate} {metric} by layer"
    return Figure(
        title=title,
        source=made.source,
        alt=f"{title}, {layers[0]} to {layers[-1]}; the values stand in the table below",
        left_out=len(series) - len(shown),
    )


def _draw_pairs(results: StudyResults, expected: Expectation) -> Figure:
    """Two metrics of the same samples, with a LOWESS curve."""
    where = place(results, claimed_of(results, expected))
    with drawing() as made:
        axes = made.axes
        xs, ys = (list(values) for values in zip(*expected.pairs, strict=True))
        if _wide(xs):
            logarithmic(axes, "x")
        if _wide(ys):
            logarithmic(axes, "y")
        axes.plot(xs, ys, "o", markersize=4, color="C0", alpha=0.6)
        _draw_curve(axes, xs, ys, "0.4", label="LOWESS")
        axes.set_xlabel(expected.metric)
        axes.set_ylabel(str(expected.against))
    title = f"{expected.against} against {expected.metric}, {where}"
    return Figure(
        title=title,
        source=made.source,
        alt=f"{title}; {expected.subject} is {text.plain(expected.measured)}",
    )


def _draw_trade(results: StudyResults, trade: Trade) -> Figure:
    """Accuracy over leakage: the better a cell, the further up and to the left."""
    cells = {cell.name: cell for cell in results.cells}
    drawn = {name: point for name, point in trade.points.items() if finite(point[0])}
    with drawing() as made:
        axes = made.axes
        if rest := [point for name, point in drawn.items() if name not in trade.front]:
            axes.plot(*zip(*rest, strict=True), "o", color="0.65", label="another is better")
        if front := [drawn[name] for name in trade.front if name in drawn]:
            axes.plot(*zip(*front, strict=True), "o-", color="C0", label="Pareto front")
        for name in trade.front:
            if name in drawn:
                axes.annotate(
                    place(results, cells[name]),
                    drawn[name],
                    xytext=(4, -9),
                    textcoords="offset points",
                    fontsize="xx-small",
                )
        axes.set_xlabel(f"leakage: mean {trade.leakage} of the attack that finds most")
        axes.set_ylabel("mean accuracy")
        if trade.falling:
            axes.invert_xaxis()
    title = f"accuracy against {trade.leakage}"
    named = "; ".join(place(results, cells[name]) for name in trade.front)
    return Figure(
        title=f"{title}, with the Pareto front",
        source=made.source,
        alt=f"{title}; no other cell is better in both than: {named}",
    )


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _WIDE


def _short(words: str) -> str:
    """Names that leave room for the drawing; the table has them whole."""
    return words if len(words) <= _LONGEST_NAME else f"{words[: _LONGEST_NAME - 1]}…"


def _draw_series(
    axes: Axes, name: str, points: Sequence[_Point], colour: str, *, joined: bool
) -> None:
    xs = [point.x for point in points]
    means = [point.value.mean for point in points]
    marks: dict[str, Any] = {"color": colour, "label": name or "measured"}
    axes.plot(xs, means, "o-" if joined else "o", markersize=4, linewidth=1.2, **marks)
    spread = [point for point in points if finite(point.value.low)]
    if spread:
        # `low` and `high` are there together.
        lows = [point.value.mean - (point.value.low or 0.0) for point in spread]
        highs = [(point.value.high or 0.0) - point.value.mean for point in spread]
        axes.errorbar(
            [point.x for point in spread],
            [point.value.mean for point in spread],
            yerr=[lows, highs],
            fmt="none",
            ecolor=colour,
            capsize=3,
        )
    for comparison, (marker, words) in _EXPECTED.items():
        there = [
            (point.x, point.expected.value)
            for point in points
            if point.expected is not None and point.expected.comparison == comparison
        ]
        if there:
            axes.plot(
                *zip(*there, strict=True),
                marker,
                markersize=8,
                markerfacecolor="none",
                markeredgecolor=colour,
                label=f"{name}, {words}".removeprefix(", "),
            )


def _draw_curve(
    axes: Axes, xs: Sequence[float], ys: Sequence[float], colour: str, label: str | None = None
) -> None:
    """On the scales that the axes have by now: else the greatest values would bend it."""
    scales = [axis.get_transform() for axis in (axes.xaxis, axes.yaxis)]
    points = (scale.transform(each).tolist() for scale, each in zip(scales, (xs, ys), strict=True))
    curve = smoothed(*points)
    if curve[0]:
        drawn = [scale.inverted().transform(c) for scale, c in zip(scales, curve, strict=True)]
        axes.plot(*drawn, "--", color=colour, linewidth=1, label=label)
