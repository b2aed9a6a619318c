"""The table of a study: a row per cell, the keys that tell cells apart, the metrics asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedleak.reporting import text
from fedleak.reporting.results import Expectation
from fedleak.reporting.study.results import StudyCell, StudyResults, Value

_MAIN = ("psnr", "ssim", "label-accuracy", "extraction-recall", "accuracy")
"""What is shown of a study that expects nothing in particular."""
_COSTS = ("bytes-sent", "train-seconds", "refused")
"""What defenses cost, shown beside the main ones of a study of defenses, as epsilon is."""
_LEAKAGE = {"psnr": 1, "extraction-recall": 1, "mse": -1}
"""Scores that say how much leaks, and whether more of it means more or less."""
_LEAKAGE_SHOWN = ("psnr", "extraction-recall")
"""Those that are compared with accuracy where expectations name none."""
_DEFENDED = ("client.defenses", "aggregation.")
_LAST = ("loss", *_COSTS, "seconds")
_MOST_DECIMALS = 4
_LOPSIDED = 0.1
_WORST = 3
_FEW = 4
"""Of fewer repeats Student's t is several times what it is of many."""

_Measure = tuple[str, str, int | None]
"""Metric, aggregate, round."""


@dataclass(frozen=True)
class Line:
    """What was measured of one cell by one attack, in one layer where it has layers.

    Attributes:
        cell: The cell.
        attack: None where nothing was attacked.
        layer: None for what belongs to no layer.
        values: Over the whole run or a single round, by metric, aggregate and round.
    """

    cell: StudyCell
    attack: str | None
    layer: str | None
    values: Mapping[_Measure, Value]


@dataclass(frozen=True)
class Column:
    """One metric of the table.

    Attributes:
        metric: Its name.
        aggregate: How the samples of a run became one value.
        round: None for the whole run.
        head: All that in words; the aggregate only where it makes a difference.
    """

    metric: str
    aggregate: str
    round: int | None
    head: str

    def of(self, line: Line) -> Value | None:
        """The line's value."""
        return line.values.get((self.metric, self.aggregate, self.round))


def telling_keys(results: StudyResults) -> list[str]:
    """The matrix's keys that are needed to tell its cells apart.

    A key goes whose value follows from those to its left, or from the kind that stands in
    the same table: a path says nothing that ``data.kind`` does not say as well.
    """
    kept: list[str] = []
    for key in results.keys:
        kind = f"{key.rpartition('.')[0]}.kind"
        told = kind in results.keys and kind != key and _follows(results, key, [kind])
        if not told and not _follows(results, key, kept):
            kept.append(key)
    return kept


def _follows(results: StudyResults, key: str, given: Sequence[str]) -> bool:
    """Whether the cells' values of some keys leave no choice for another."""
    known: dict[tuple[str | None, ...], str | None] = {}
    for cell in results.cells:
        value = cell.settings.get(key)
        if known.setdefault(tuple(cell.settings.get(g) for g in given), value) != value:
            return False
    return True


def settings(results: StudyResults, cell: StudyCell) -> dict[str, str]:
    """What sets a cell apart: values by shortened key; ``""`` for a key that it lacks."""
    return {results.short_keys[key]: cell.settings.get(key, "") for key in telling_keys(results)}


def lines(results: StudyResults) -> list[Line]:
    """The table in the matrix's order. What the global model reached stands in each line
    of its cell."""
    found: dict[tuple[str, str | None, str | None], dict[_Measure, Value]] = {}
    for value in results.values:
        group = found.setdefault((value.cell, value.attack, value.layer), {})
        group[value.metric, value.aggregate, value.round] = value
    table = []
    for cell in results.cells:
        model = found.get((cell.name, None, None), {})
        attacked = [key for key in found if key[0] == cell.name and key[1:] != (None, None)]
        # How long a measure of layers took is no line of its own beside its layers.
        layered = {key[1] for key in attacked if key[2] is not None}
        attacked = [
            key
            for key in attacked
            if key[2] is not None
            or key[1] not in layered
            or any(metric != "seconds" for metric, *_ in found[key])
        ]
        table += [Line(cell, key[1], key[2], {**found[key], **model}) for key in attacked]
        if not attacked:
            table.append(Line(cell, None, None, model))
    return table


def row_heads(results: StudyResults, table: Sequence[Line]) -> list[tuple[str, list[str]]]:
    """The columns that say what a line is about: head and cells. What is the same in all
    lines is no column; `extent` names the attack."""
    columns = [
        (key, [settings(results, line.cell)[key] for line in table])
        for key in (results.short_keys[key] for key in telling_keys(results))
    ]
    columns += [
        (head, cells)
        for head, cells in (
            ("attack", [line.attack or "" for line in table]),
            ("layer", [line.layer or "" for line in table]),
        )
        if len(set(cells)) > 1
    ]
    return columns


def metrics(results: StudyResults) -> list[str]:
    """All metrics in the order they were scored, the least telling ones last."""
    names = dict.fromkeys(value.metric for value in results.values)
    return [n for n in names if n not in _LAST] + [n for n in _LAST if n in names]


def metric_aggregates(results: StudyResults) -> dict[str, str]:
    """For each metric how samples become the value that is shown: as published, else mean."""
    chosen = {}
    for metric in metrics(results):
        published = Counter(
            e.aggregate
            for e in results.expectations
            if e.metric == metric and e.aggregate in {value.aggregate for value in results.values}
        )
        chosen[metric] = published.most_common(1)[0][0] if published else "mean"
    return chosen


def columns(results: StudyResults) -> list[Column]:
    """The metrics that expectations mention, as they mention them; without any the main ones."""
    if results.expectations:
        asked = [(e.metric, e.aggregate or "mean", e.round) for e in results.expectations]
    else:
        there = metrics(results)
        asked = [(name, "mean", None) for name in _MAIN if name in there] or [
            (name, "mean", None) for name in there
        ]
        if any(key.startswith(_DEFENDED) for key in results.keys):
            costs = [name for name in there if name.endswith("/epsilon") or name in _COSTS]
            asked += [(name, "mean", None) for name in costs]
    measured = {(value.metric, value.aggregate, value.round) for value in results.values}
    return [
        Column(*key, head=in_words(results, *key))
        for key in dict.fromkeys(asked)
        if key in measured
    ]


def in_words(results: StudyResults, metric: str, aggregate: str, round: int | None) -> str:
    """``median psnr in round 2``; the aggregate is left out where all give the same."""
    values: dict[tuple[object, ...], set[float]] = {}
    for value in results.values:
        if (value.metric, value.round) == (metric, round):
            key = value.cell, value.attack, value.layer
            values.setdefault(key, set()).add(value.mean)
    differs = any(len(found) > 1 for found in values.values())
    when = "" if round is None else f" in round {round}"
    return (f"{aggregate} " if differs else "") + metric + when


def with_interval(value: Value | None) -> str:
    """``12.3 ± 0.4``: the mean over repeats and half of its 95 % interval."""
    return text.MISSING if value is None else plus_minus(value.mean, value.low, value.high)


def plus_minus(mean: float | None, low: float | None, high: float | None) -> str:
    """A mean and half of its interval, both to the interval's second digit; of an interval that
    reaches further to one side, both ends."""
    if mean is None or low is None or high is None or not high > low:
        return text.plain(mean)
    half = (high - low) / 2
    if abs(low + high - 2 * mean) > _LOPSIDED * half:
        return f"{text.plain(mean)} ({text.interval(low, high)})"
    decimals = min(max(1 - math.floor(math.log10(half)), 0), _MOST_DECIMALS)
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}".replace("-", "−")


def answer(results: StudyResults) -> str:
    """What the study found, in a sentence or two."""
    said = []
    if results.expectations:
        met = sum(expectation.met for expectation in results.expectations)
        told = f"{met} of {len(results.expectations)} expected values were met"
        if undecided := sum(expectation.undecided for expectation in results.expectations):
            verb = "is" if undecided == 1 else "are"
            told += f"; {text.count(undecided, 'claim')} {verb} undecided"
        said.append(f"{told}.")
    if results.waiting:
        said.append(f"{text.count(results.waiting, 'expected value')} not measured yet.")
    shown = any(column.metric == "psnr" for column in columns(results))
    worst = max(
        (v for v in results.overall if shown and v.metric == "psnr" and v.aggregate == "mean"),
        key=lambda value: value.mean,
        default=None,
    )
    if worst is not None:
        cell = next(cell for cell in results.cells if cell.name == worst.cell)
        where = f" at {place(results, cell)}" if telling_keys(results) else ""
        said.append(
            f"Most leaked{where}: mean PSNR {text.decibel(worst.mean)} dB by {worst.attack}."
        )
    return " ".join(said) or f"{text.count(len(results.cells), 'cell')} measured."


def worst_missed(results: StudyResults) -> list[str]:
    """The expectations that were missed worst, one line each."""
    said = []
    for e in by_miss(results.expectations)[:_WORST]:
        if e.met:
            break
        where = place_of(results, e) or "all"
        what = what_is_claimed(results, e)
        measured = "not measured" if e.measured is None else text.plain(e.measured)
        expected = text.requirement(e.comparison, e.value, e.tolerance).removeprefix("= ")
        said.append(f"{what} at {where}: {measured}, expected {expected}")
    return said


def claimed_of(results: StudyResults, expectation: Expectation) -> StudyCell:
    """The cell that an expectation is about; of several together, what they have in common."""
    cells = [cell for cell in results.cells if cell.name in expectation.cells]
    if len(cells) == 1:
        return cells[0]
    shared = set.intersection(*(set(cell.settings.items()) for cell in cells))
    return StudyCell(name=", ".join(expectation.cells), settings=dict(shared), runs=())


def what_is_claimed(results: StudyResults, expectation: Expectation) -> str:
    """The metric that an expectation is about, or the two whose correlation it is about."""
    if expectation.against is not None:
        return expectation.subject
    if expectation.aggregate == "spread":
        return f"spread of {expectation.metric}"
    return in_words(results, expectation.metric, expectation.aggregate, expectation.round)


def by_miss(expectations: Sequence[Expectation]) -> list[Expectation]:
    """The worst misses first: by the difference in units of what is tolerated, or else of
    the value itself."""

    def miss(expectation: Expectation) -> float:
        if expectation.met:
            return -1.0
        if expectation.difference is None:
            return math.inf
        return abs(expectation.difference) / (expectation.tolerance or abs(expectation.value) or 1)

    return sorted(expectations, key=miss, reverse=True)


def place(results: StudyResults, cell: StudyCell) -> str:
    """A cell's settings in a few words."""
    return _told(settings(results, cell)) or "all"


def place_of(results: StudyResults, expectation: Expectation) -> str:
    """The settings that an expectation is about, and those that are subtracted; empty
    where nothing tells them from others."""
    cell = claimed_of(results, expectation)
    where = _told(settings(results, cell))
    if expectation.minus is None:
        return where
    (minus,) = (each for each in results.cells if each.name == expectation.minus)
    return f"{where} minus {place_beside(results, minus, cell)}"


def verdicts(results: StudyResults) -> list[str]:
    """What was claimed and whether it was seen, a sentence each."""
    said = [each.verdict(place_of(results, each)) for each in results.expectations]
    return [each for each in said if each is not None]


def place_beside(results: StudyResults, cell: StudyCell, other: StudyCell) -> str:
    """In what a cell differs from another one."""
    there = settings(results, other)
    told = {k: v for k, v in settings(results, cell).items() if v != there[k]}
    return _told(told) or place(results, cell)


def _told(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items() if value)


def extent(results: StudyResults) -> str:
    """How much was run, in a sentence."""
    total = len(results.cells) * results.repeats
    done, failed = results.count("done"), results.count("failed")
    each = "run once" if results.repeats == 1 else f"with {results.repeats} repeats each"
    said = f"{text.count(len(results.cells), 'cell')}, {each}"
    attacks = {value.attack for value in results.values} - {None}
    if len(attacks) == 1:
        said += f", by {attacks.pop()}"
    if done == total:
        return f"{said}."
    rest = total - done - failed
    parts = [f"{failed} failed"] if failed else []
    parts += [f"{rest} not run yet"] if rest else []
    return f"{said}: {done} of {total} runs finished, {', '.join(parts)}."


def failures(results: StudyResults) -> list[tuple[str, int]]:
    """What went wrong, in a line each, and how often; most often first."""
    counts: Counter[str] = Counter()
    for cell in results.cells:
        for run in cell.runs:
            if run.status == "failed":
                counts[f"{cell.name} failed: {text.one_line(run.reason)}"] += 1
        for trouble in cell.troubles:
            said = f"{cell.name}, {trouble.attack} {trouble.status}: "
            counts[said + text.one_line(trouble.reason)] += trouble.cells
    return counts.most_common()


def note_on_intervals(results: StudyResults) -> str:
    """What stands behind the ± or why there is none."""
    if results.repeats == 1:
        lows = [value.low for value in results.values]
        lows += [expected.low for expected in results.expectations]
        if any(low is not None for low in lows):
            return (
                "One repeat: 95 % intervals are a measure's own, or over the samples of the run, "
                "which share a model."
            )
        return "One repeat: no interval."
    said = f"Mean over {results.repeats} repeats ± half its 95 % interval (Student's t)."
    return f"{said} So few repeats make it wide." if results.repeats < _FEW else said


@dataclass(frozen=True)
class Course:
    """A metric of the global model after each round.

    Attributes:
        metric: Its name.
        rounds: Ascending.
        cells: By cell's name, the values by round.
    """

    metric: str
    rounds: tuple[int, ...]
    cells: Mapping[str, Mapping[int, Value]]


def courses(results: StudyResults) -> list[Course]:
    """How accuracy, or else the loss, went from round to round; what is expected comes first."""
    expected = {expectation.metric for expectation in results.expectations}
    for metric in sorted(("accuracy", "loss"), key=lambda name: name not in expected):
        cells: dict[str, dict[int, Value]] = {}
        for value in results.values:
            if value.round and (value.metric, value.aggregate) == (metric, "mean"):
                cells.setdefault(value.cell, {})[value.round] = value
        if cells:
            rounds = sorted({number for found in cells.values() for number in found})
            return [Course(metric, tuple(rounds), cells)]
    return []


@dataclass(frozen=True)
class Trade:
    """What cells leave of leakage, and what of accuracy.

    Attributes:
        leakage: The metric.
        falling: Whether less of it means that more leaks.
        found: By cell's name, what each attack found on average.
        points: By cell's name, mean leakage by the attack that finds most, and mean accuracy.
        front: Cells than which no other is better in one and as good in the other, the least
            leakage first.
    """

    leakage: str
    falling: bool
    found: Mapping[str, Mapping[str, Value]]
    points: Mapping[str, tuple[float, float]]
    front: tuple[str, ...]


def trades(results: StudyResults) -> list[Trade]:
    """Utility against privacy, where a study of defenses measured both."""
    if not any(key.startswith(_DEFENDED) for key in results.keys):
        return []
    means = [value for value in results.overall if value.aggregate == "mean"]
    accuracy = {value.cell: value.mean for value in means if value.metric == "accuracy"}
    named = {expectation.metric for expectation in results.expectations}
    drawn = []
    for metric in [name for name in _LEAKAGE if name in named] or _LEAKAGE_SHOWN:
        found: dict[str, dict[str, Value]] = {}
        for value in means:
            if value.metric == metric and value.attack and value.cell in accuracy:
                found.setdefault(value.cell, {})[value.attack] = value
        sign = _LEAKAGE[metric]
        leaks = {
            cell: (max(sign * value.mean for value in by.values()), accuracy[cell])
            for cell, by in found.items()
        }
        points = {cell: (sign * leak, kept) for cell, (leak, kept) in leaks.items()}
        if len(points) > 1:
            drawn.append(Trade(metric, sign < 0, found, points, pareto_front(leaks)))
    return drawn


def trade_table(results: StudyResults, trade: Trade) -> MainTable:
    """Accuracy, costs and what each attack found, a row for each cell that has both."""
    shown = [cell for cell in results.cells if cell.name in trade.points]
    attacks = list(dict.fromkeys(a for cell in shown for a in trade.found[cell.name]))
    costs = [name for name in metrics(results) if name.endswith("/epsilon") or name in _COSTS]
    own = {
        (value.cell, value.metric): value
        for value in results.overall
        if value.attack is None and value.aggregate == "mean"
    }
    told = [settings(results, cell) for cell in shown]
    keys = [key for key in told[0] if len({each[key] for each in told}) > 1]
    rows = []
    for cell, each in zip(shown, told, strict=True):
        values = [own.get((cell.name, name)) for name in ("accuracy", *costs)]
        values += [trade.found[cell.name].get(attack) for attack in attacks]
        last = "yes" if cell.name in trade.front else ""
        rows.append(([each[key] for key in keys], [*map(with_interval, values), last]))
    heads = ("accuracy", *costs, *(f"{trade.leakage} of {a}" for a in attacks), "Pareto front")
    return MainTable(tuple(keys), heads, tuple(rows))


def pareto_front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Names of the points that no other beats: none has less of the first and no less of the
    second, or as much of the first and more of the second. By the first, ascending."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1] or points[name] == points[front[-1]]:
            front.append(name)
    return tuple(front)


def finite(value: float | None) -> bool:
    """Whether a value can be drawn."""
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class MainTable:
    """What was measured, in words: a row is what tells a cell apart, and its values."""

    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[tuple[list[str], list[str]], ...]


def main_table(results: StudyResults) -> MainTable:
    """The table of all cells with the main metrics side by side."""
    table, shown = lines(results), columns(results)
    heads = row_heads(results, table)
    return MainTable(
        keys=tuple(head for head, _ in heads),
        metrics=tuple(column.head for column in shown),
        rows=tuple(
            (
                [cells[i] for _, cells in heads],
                [with_interval(column.of(line)) for column in shown],
            )
            for i, line in enumerate(table)
        ),
    )
