"""The report of a study for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedleak.reporting.study.comparison import Compared, compared, side_by_side
from fedleak.reporting.study.results import StudyResults, read_study
from fedleak.reporting.study.tables import (
    Trade,
    answer,
    by_miss,
    columns,
    courses,
    extent,
    failures,
    lines,
    note_on_intervals,
    row_heads,
    settings,
    trade_table,
    trades,
    verdicts,
    with_interval,
    worst_missed,
)
from fedleak.reporting.terminal import outside

WIDTH = 80
MOST_LINES = 60
MOST_FAILURES = 5
_WIDEST_KEY = 24
_WIDEST_HEAD = 16
_GAP = 2


@dataclass(frozen=True)
class _Column:
    head: str
    cells: Sequence[str]
    whole: bool = False

    @property
    def lines(self) -> list[str]:
        """The head, unless it is to stay whole broken to about the width of what is below."""
        if self.whole:
            return [self.head]
        width = max(_WIDEST_HEAD, *map(len, self.cells)) if self.cells else _WIDEST_HEAD
        return textwrap.wrap(self.head, width) or [""]

    @property
    def width(self) -> int:
        return max(map(len, (*self.lines, *self.cells)))


def study_report(directory: Path) -> RenderableType:
    """Render a study for `rich.console.Console.print`.

    The answer first, with the worst misses; then one table with a row per cell, published
    beside measured values, the model's accuracy over rounds, and what did not finish.
    Everything else that was measured is on the page.

    Args:
        directory: The study's directory.

    Raises:
        ResourceError: There is no study, or nothing of it was aggregated.
        CaptureError: A file of it is damaged; the message names the file.
    """
    results = read_study(directory)
    missed = worst_missed(results)
    parts: list[RenderableType] = [Text(answer(results), "bold red" if missed else "bold")]
    parts += [outside(said) for said in verdicts(results)]
    if missed:
        parts.append(Text("Missed worst:"))
        parts += [Padding(outside(said), (0, 0, 0, 2)) for said in missed]
    parts.append(outside(extent(results)))
    parts += [Text(note, "yellow") for note in results.notes]
    offered = trades(results)
    if results.expectations or not offered:
        parts += _measured(results)
    parts += _compared(results)
    for trade in offered:
        parts += _offered(results, trade)
    parts += _over_rounds(results)
    told = failures(results)
    for said, count in told[:MOST_FAILURES]:
        parts += [Text(), outside(said + (f" ({count} times)" if count > 1 else ""))]
    if len(told) > MOST_FAILURES:
        parts.append(Text(f"and {len(told) - MOST_FAILURES} more, on the page", "dim"))
    return Group(*parts)


def _measured(results: StudyResults) -> list[RenderableType]:
    """The table, cut into several where its metrics do not fit side by side."""
    everything = lines(results)
    shown = everything[:MOST_LINES]
    heads = [_Column(head, cells) for head, cells in row_heads(results, shown)]
    values = [
        _Column(column.head, [with_interval(column.of(line)) for line in shown])
        for column in columns(results)
    ]
    if not values:
        return []
    parts: list[RenderableType] = []
    for group in _groups(heads, values):
        parts += [Text(), _table(heads, group)]
    return [*parts, Text(note_on_intervals(results), "dim"), *_hidden(len(everything), "lines")]


def _offered(results: StudyResults, trade: Trade) -> list[RenderableType]:
    """What each cell leaves of accuracy and what it leaks, cut into several where need be."""
    table = trade_table(results, trade)
    rows = table.rows[:MOST_LINES]
    heads = [_Column(head, [keys[i] for keys, _ in rows]) for i, head in enumerate(table.keys)]
    values = [_Column(head, [told[i] for _, told in rows]) for i, head in enumerate(table.metrics)]
    parts: list[RenderableType] = [Text(), Text(f"accuracy against {trade.leakage}", "dim")]
    for number, group in enumerate(_groups(heads, values)):
        parts += [*([Text()] if number else []), _table(heads, group)]
    return [*parts, Text(note_on_intervals(results), "dim"), *_hidden(len(table.rows), "lines")]


def _compared(results: StudyResults) -> list[RenderableType]:
    """All published values where they fit side by side, else those that were missed."""
    told = compared(results)
    if not told:
        return []
    side = side_by_side(told)
    order = {cell.name: position for position, cell in enumerate(results.cells)}
    # What several cells share comes after what single ones have.
    shown = sorted(
        {each.cell.name: each.cell for each in told}.values(),
        key=lambda cell: order.get(cell.name, len(order)),
    )
    heads = _cells(results, [settings(results, cell) for cell in shown])
    values = [
        _Column(head, [row[head].pair if head in row else "" for row in rows])
        for head in side.heads
        if (rows := [side.rows[cell.name] for cell in shown])
    ]
    groups = _groups(heads, values)
    if len(shown) <= MOST_LINES and len(groups) == 1:
        return [Text(), Text("published / measured", "dim"), _table(heads, groups[0])]
    return _misses(results, told)


def _misses(results: StudyResults, told: Sequence[Compared]) -> list[RenderableType]:
    by_expectation = {id(each.expectation): each for each in told}
    missed = [by_expectation[id(e)] for e in by_miss(results.expectations) if not e.met]
    if not missed:
        return []
    shown = missed[:MOST_LINES]
    heads = _cells(results, [each.settings for each in shown])
    heads.append(_Column("missed", [each.what for each in shown]))
    values = [
        _Column("published", [f"{each.published} {each.tolerance}".strip() for each in shown]),
        _Column("measured", [each.measured for each in shown]),
    ]
    parts: list[RenderableType] = [Text(), _table(heads, values)]
    return [*parts, *_hidden(len(missed), "misses")]


def _over_rounds(results: StudyResults) -> list[RenderableType]:
    """The global model after as many rounds as there is room for, the last among them."""
    parts: list[RenderableType] = []
    for course in courses(results):
        shown = [cell for cell in results.cells if cell.name in course.cells][:MOST_LINES]
        heads = _cells(results, [settings(results, cell) for cell in shown])
        values = [
            _Column(
                str(number),
                [
                    f"{value.mean:.3f}" if (value := course.cells[cell.name].get(number)) else ""
                    for cell in shown
                ],
            )
            for number in course.rounds
        ]
        room = (WIDTH - _taken(heads)) // (max(column.width for column in values) + _GAP)
        step = -(-len(values) // max(room, 1))
        chosen = list(reversed(values[::-1][::step]))
        title = f"{course.metric} after round"
        parts += [Text(), Text(title, "dim"), _table(heads, chosen)]
    return parts


def _cells(results: StudyResults, rows: Sequence[dict[str, str]]) -> list[_Column]:
    """The keys that tell cells apart, as columns."""
    return [_Column(key, [row[key] for row in rows]) for key in (rows[0] if rows else ())]


def _taken(heads: Sequence[_Column]) -> int:
    return sum(min(column.width, _WIDEST_KEY) + _GAP for column in heads)


def _groups(heads: Sequence[_Column], values: Sequence[_Column]) -> list[list[_Column]]:
    """Columns that fit beside the heads, group by group; if need be with broken heads."""
    groups = _filled(heads, [replace(column, whole=True) for column in values])
    return groups if len(groups) == 1 else _filled(heads, values)


def _filled(heads: Sequence[_Column], values: Sequence[_Column]) -> list[list[_Column]]:
    groups: list[list[_Column]] = []
    left = 0
    for column in values:
        # The last column needs no gap.
        if not groups or column.width > left:
            groups.append([])
            left = WIDTH - _taken(heads)
        groups[-1].append(column)
        left -= column.width + _GAP
    return groups


def _table(heads: Sequence[_Column], values: Sequence[_Column]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for column in heads:
        table.add_column(
            outside(column.head), overflow="fold", max_width=_WIDEST_KEY, vertical="bottom"
        )
    for column in values:
        head = Text("\n").join(map(outside, column.lines))
        table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
    for row in zip(*(column.cells for column in (*heads, *values)), strict=True):
        table.add_row(
            *map(outside, row), style="red" if any(cell.endswith(" NO") for cell in row) else ""
        )
    return table


def _hidden(total: int, noun: str) -> list[RenderableType]:
    if total <= MOST_LINES:
        return []
    return [Text(f"The other {total - MOST_LINES} {noun} are on the page.", "dim")]
