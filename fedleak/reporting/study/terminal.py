"""The report of a study for a terminal of 80 columns."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedleak.reporting.study.results import StudyResults, read_study
from fedleak.reporting.study.tables import (
    Line,
    answer,
    extent,
    failures,
    lines,
    metrics,
    note_on_intervals,
    place,
    with_interval,
)
from fedleak.reporting.terminal import compared, outside

WIDTH = 80
MOST_LINES = 60
MOST_FAILURES = 5
_WIDEST_KEY = 24
_GAP = 2


def study_report(directory: Path) -> RenderableType:
    """Render a study for `rich.console.Console.print`.

    The answer first; then published against measured values, the table with the
    matrix's keys as columns, and what did not finish.

    Args:
        directory: The study's directory.

    Raises:
        ResourceError: There is no study, or nothing of it was aggregated.
        CaptureError: A file of it is damaged; the message names the file.
    """
    results = read_study(directory)
    missed = any(not expectation.met for expectation in results.expectations)
    parts: list[RenderableType] = [
        Text(answer(results), "bold red" if missed else "bold"),
        Text(extent(results)),
    ]
    parts += [Text(note, "yellow") for note in results.notes]
    if results.expectations:
        # Misses first: a long table of what went well must not hide them.
        places = {cell.name: place(results, cell) for cell in results.cells}
        shown = [
            expectation.model_copy(
                update={
                    "cell": places[expectation.cell],
                    "minus": expectation.minus and places[expectation.minus],
                }
            )
            for expectation in sorted(results.expectations, key=lambda e: e.met)
        ]
        parts += [Text(), compared(shown[:MOST_LINES])]
        if len(shown) > MOST_LINES:
            parts.append(Text(f"the other {len(shown) - MOST_LINES} are on the page", "dim"))
    for table in _tables(results):
        parts += [Text(), table]
    if results.values:
        note = note_on_intervals(results)
        hidden = len(lines(results)) - MOST_LINES
        parts.append(Text(note + (f" The other {hidden} lines are on the page." * (hidden > 0))))
    told = failures(results)
    for said, count in told[:MOST_FAILURES]:
        parts += [Text(), outside(said + (f" ({count} times)" if count > 1 else ""))]
    if len(told) > MOST_FAILURES:
        parts.append(Text(f"and {len(told) - MOST_FAILURES} more, on the page", "dim"))
    return Group(*parts)


def _tables(results: StudyResults) -> list[Table]:
    """The table, cut into several where its metrics do not fit side by side."""
    shown = lines(results)[:MOST_LINES]
    heads = _heads(results, shown)
    taken = sum(min(_width(head, column), _WIDEST_KEY) + _GAP for head, column in heads)
    columns = [
        (metric, [with_interval(line.values.get(metric)) for line in shown])
        for metric in metrics(results)
    ]
    groups: list[list[tuple[str, list[str]]]] = []
    left = 0
    for head, column in columns:
        width = _width(head, column) + _GAP
        if width > left:
            groups.append([])
            left = WIDTH - taken
        groups[-1].append((head, column))
        left -= width
    return [_table(heads, group) for group in groups]


def _heads(results: StudyResults, shown: list[Line]) -> list[tuple[str, list[str]]]:
    """The columns that say what a line is about."""
    heads = [
        (short, [line.cell.settings.get(key, "") for line in shown])
        for key, short in results.short_keys.items()
    ]
    heads.append(("attack", [line.attack or "" for line in shown]))
    heads.append(("layer", [line.layer or "" for line in shown]))
    return [(head, column) for head, column in heads if any(column)]


def _table(heads: list[tuple[str, list[str]]], group: list[tuple[str, list[str]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for head, _ in heads:
        table.add_column(outside(head), overflow="fold", max_width=_WIDEST_KEY)
    for head, _ in group:
        table.add_column(outside(head), justify="right", no_wrap=True)
    columns = [column for _, column in (*heads, *group)]
    for row in zip(*columns, strict=True):
        table.add_row(*map(outside, row))
    return table


def _width(head: str, column: list[str]) -> int:
    return max(map(len, (head, *column)))
