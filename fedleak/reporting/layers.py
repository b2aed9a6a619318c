"""What measures gave, layer by layer: where an update leaks."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fedleak.reporting import text
from fedleak.reporting.drawing import Figure, drawing, logarithmic
from fedleak.reporting.results import Measured, Results

MOST_ROUNDS = 10
"""Rounds drawn in one chart."""

MOST_NUMBERS = 16
"""Metrics that differ in a number drawn in one chart, in each round."""

_NUMBER = re.compile(r"-\d+(?=-|$)")


@dataclass(frozen=True)
class MeasuredRow:
    """One metric in one layer and round, over what clients and samples it was measured of.

    Attributes:
        measure: The measure's name.
        settings: The parameters in which it differs from others of its kind.
        metric: What is measured.
        layer: The layer or layers; None for the whole update.
        round: Round number, from 1.
        values: How many clients or samples ``value`` is the median of.
        value: Median.
        greatest: The greatest of them.
        low: Lower end of its 95 % interval, where a single value has one; else NaN.
        high: Upper end.
    """

    measure: str
    settings: str
    metric: str
    layer: str | None
    round: int
    values: int
    value: float
    greatest: float
    low: float
    high: float


@dataclass(frozen=True)
class Headline:
    """One metric of a measure and where it is greatest.

    Attributes:
        most: The layer and round in which the median is greatest.
        rows: All layers and rounds, in the model's order.
    """

    most: MeasuredRow
    rows: tuple[MeasuredRow, ...]


def measured_rows(results: Results) -> list[MeasuredRow]:
    """What was measured, by measure, metric and round, layers in the model's order.

    Where a measure gives a value of all samples together, that is shown and not those of
    single samples.
    """
    cells = {cell.cell: cell for cell in results.measures}
    groups: dict[tuple[str, str, str, int, str | None], list[Measured]] = {}
    for value in results.measured:
        cell = cells[value.cell]
        key = (cell.task, results.settings(cell), value.metric, cell.round, value.layer)
        groups.setdefault(key, []).append(value)
    rows = []
    for (measure, settings, metric, number, layer), found in groups.items():
        whole = [value for value in found if value.sample < 0] or found
        alone = whole[0] if len(whole) == 1 else None
        rows.append(
            MeasuredRow(
                measure=measure,
                settings=settings,
                metric=metric,
                layer=layer,
                round=number,
                values=len(whole),
                value=statistics.median(value.value for value in whole),
                greatest=max(value.value for value in whole),
                low=math.nan if alone is None else alone.low,
                high=math.nan if alone is None else alone.high,
            )
        )
    return rows


def headlines(rows: Sequence[MeasuredRow]) -> list[Headline]:
    """Each metric once, with the place where it is greatest."""
    groups: dict[tuple[str, str, str], list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault((row.measure, row.settings, row.metric), []).append(row)
    return [
        Headline(max(group, key=lambda row: row.value), tuple(group)) for group in groups.values()
    ]


def refuted(results: Results) -> list[str]:
    """Claims of differential privacy that an audit of epsilon refutes, a sentence each."""
    found: dict[str, dict[str, float]] = {}
    for value in results.measured:
        found.setdefault(value.cell, {})[value.metric] = value.value
    cells = {cell.cell: cell for cell in results.measures}
    said = []
    for name, values in found.items():
        claimed = values.get("claimed-epsilon")
        bounds = [values.get(m, 0.0) for m in ("empirical-epsilon", "empirical-epsilon-gaussian")]
        if claimed is not None and max(bounds) > claimed:
            cell = cells[name]
            said.append(
                f"The privacy that {cell.client} claims in round {cell.round} is refuted: epsilon "
                f"is at least {text.plain(max(bounds))}, and {text.plain(claimed)} is claimed of "
                "one step."
            )
    return said


def layer_charts(results: Results) -> list[Figure]:
    """A chart of each metric that has layers: one line for each round.

    Metrics that only differ in a number, such as a threshold, share a chart.
    """
    groups: dict[tuple[str, str, str], list[MeasuredRow]] = {}
    for headline in headlines(measured_rows(results)):
        rows = [row for row in headline.rows if row.layer and math.isfinite(row.value)]
        if len({row.layer for row in rows}) > 1:
            stem = _NUMBER.sub("", headline.most.metric)
            place = headline.most.measure, headline.most.settings, stem
            groups.setdefault(place, []).extend(rows)
    return [_chart(rows) for rows in groups.values()]


def _chart(rows: Sequence[MeasuredRow]) -> Figure:
    layers = list(dict.fromkeys(str(row.layer) for row in rows))
    rounds = {row.round for row in rows}
    metrics = {row.metric for row in rows}
    lines: dict[str, list[MeasuredRow]] = {}
    for row in rows:
        number = _NUMBER.search(row.metric) if len(metrics) > 1 else None
        parts = [number[0].strip("-")] if number else []
        parts += [f"round {row.round}"] if len(rounds) > 1 else []
        lines.setdefault(", ".join(parts), []).append(row)
    most = MOST_ROUNDS if len(metrics) == 1 else MOST_NUMBERS
    metric = rows[0].metric if len(metrics) == 1 else _NUMBER.sub("", rows[0].metric)
    title = f"{metric} {rows[0].settings}".strip()
    with drawing() as made:
        for label, there in list(lines.items())[:most]:
            xs = [layers.index(str(row.layer)) for row in there]
            made.axes.errorbar(
                xs,
                [row.value for row in there],
                # No interval is no bar.
                yerr=[
                    [row.value - row.low for row in there],
                    [row.high - row.value for row in there],
                ],
                fmt="o-",
                markersize=4,
                linewidth=1.2,
                capsize=3,
                label=label or None,
            )
        made.axes.set_ylabel(title)
        made.axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
        values = [row.value for row in rows]
        if min(values) > 0 and max(values) / min(values) >= 100:
            logarithmic(made.axes, "y")
    return Figure(
        title=f"{title} by layer",
        source=made.source,
        alt=f"{title} by layer; the values stand in the table below",
        left_out=max(0, len(lines) - most),
    )
