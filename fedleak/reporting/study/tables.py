"""The tables of a study: one line per cell and attack, and the answer in a sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fedleak.reporting import text
from fedleak.reporting.study.results import StudyCell, StudyResults, Value

_MODEL = ("accuracy", "loss")
_LAST = ("loss", "seconds")


@dataclass(frozen=True)
class Line:
    """What was measured of one cell by one attack, in one layer where it has layers.

    Attributes:
        cell: The cell.
        attack: None where nothing was attacked.
        layer: None for what belongs to no layer.
        values: By metric.
    """

    cell: StudyCell
    attack: str | None
    layer: str | None
    values: Mapping[str, Value]


def lines(results: StudyResults, aggregate: str = "mean") -> list[Line]:
    """The table in the matrix's order. What the global model reached stands in each line
    of its cell."""
    found: dict[tuple[str, str | None, str | None], dict[str, Value]] = {}
    for value in results.values:
        if value.aggregate == aggregate:
            key = value.cell, value.attack, value.layer
            found.setdefault(key, {})[value.metric] = value
    table = []
    for cell in results.cells:
        model = found.get((cell.name, None, None), {})
        attacked = [key for key in found if key[0] == cell.name and key[1:] != (None, None)]
        table += [Line(cell, key[1], key[2], {**found[key], **model}) for key in attacked]
        if not attacked:
            table.append(Line(cell, None, None, model))
    return table


def metrics(results: StudyResults) -> list[str]:
    """All metrics in the order they were scored, the least telling ones last."""
    names = dict.fromkeys(value.metric for value in results.values)
    return [n for n in names if n not in _LAST] + [n for n in _LAST if n in names]


def metric_aggregates(results: StudyResults) -> dict[str, str]:
    """For each metric how samples become the value that is shown: as published, else mean."""
    chosen = {}
    for metric in metrics(results):
        published = Counter(e.aggregate for e in results.expectations if e.metric == metric)
        chosen[metric] = published.most_common(1)[0][0] if published else "mean"
    return chosen


def with_interval(value: Value | None) -> str:
    """``12.3 ± 0.4``: the mean over repeats and half of its 95 % interval."""
    if value is None:
        return text.MISSING
    if value.low is None or value.high is None:
        return text.plain(value.mean)
    return f"{text.plain(value.mean)} ± {(value.high - value.low) / 2:.2g}"


def answer(results: StudyResults) -> str:
    """What the study found, in a sentence or two."""
    said = []
    if results.expectations:
        met = sum(expectation.met for expectation in results.expectations)
        said.append(f"{met} of {len(results.expectations)} expected values were met.")
    worst = max(
        (v for v in results.values if v.metric == "psnr" and v.aggregate == "mean"),
        key=lambda value: value.mean,
        default=None,
    )
    if worst is not None:
        cell = next(cell for cell in results.cells if cell.name == worst.cell)
        where = place(results, cell)
        said.append(
            f"Most leaked{f' at {where}' if results.keys else ''}: mean PSNR "
            f"{text.decibel(worst.mean)} dB by {worst.attack}."
        )
    return " ".join(said) or f"{text.count(len(results.cells), 'cell')} measured."


def place(results: StudyResults, cell: StudyCell) -> str:
    """A cell's settings in a few words."""
    return (
        ", ".join(f"{results.short_keys[key]} = {v}" for key, v in cell.settings.items()) or "all"
    )


def extent(results: StudyResults) -> str:
    """How much was run, in a sentence."""
    total = len(results.cells) * results.repeats
    done, failed = results.count("done"), results.count("failed")
    each = "run once" if results.repeats == 1 else f"with {results.repeats} repeats each"
    said = f"{text.count(len(results.cells), 'cell')}, {each}"
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
        return "One repeat: no interval. Mean over a run's samples."
    return (
        f"Mean over {results.repeats} repeats ± half its 95 % interval (Student's t), each the "
        "mean over a run's samples."
    )


def finite(value: float | None) -> bool:
    """Whether a value can be drawn."""
    return value is not None and math.isfinite(value)
