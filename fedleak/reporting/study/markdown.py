"""A study as a section of Markdown, for a document of many studies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedleak.reporting import text
from fedleak.reporting.study.comparison import compared
from fedleak.reporting.study.results import StudyResults, read_study
from fedleak.reporting.study.tables import (
    MainTable,
    answer,
    courses,
    extent,
    failures,
    main_table,
    note_on_intervals,
    settings,
    trade_table,
    trades,
    verdicts,
    with_interval,
    worst_missed,
)

_MOST_ROUNDS = 10
"""Columns of a table over rounds; of more rounds so many are shown, evenly spread."""

_Table = tuple[list[str], list[list[str]]]


def study_markdown(directory: Path) -> str:
    """Published and measured values, or else the main ones measured, and the command.

    Args:
        directory: The study's directory.

    Raises:
        ResourceError: There is no study, or nothing of it was aggregated.
        CaptureError: A file of it is damaged; the message names the file.
    """
    results = read_study(directory)
    parts = [f"## {results.name}"]
    if command := results.environment.get("command"):
        parts.append(f"```\n{command}\n```")
    parts.append(f"{answer(results)} {extent(results)} {note_on_intervals(results)}")
    if said := verdicts(results):
        parts.append("\n".join(f"- {sentence}" for sentence in said))
    if missed := worst_missed(results):
        parts.append("\n".join(["Missed worst:", "", *(f"- {said}" for said in missed)]))
    parts += results.notes
    offered = [trade_table(results, trade) for trade in trades(results)]
    if results.expectations:
        parts.append(_table(*_published(results)))
    elif not offered:
        parts.append(_table(*_whole(main_table(results))))
    parts += [_table(*_whole(table)) for table in offered]
    parts += [_table(*table) for table in _over_rounds(results)]
    parts += [f"- {said} ({text.count(count, 'time')})" for said, count in failures(results)]
    return "\n\n".join(parts) + "\n"


def _published(results: StudyResults) -> _Table:
    told = compared(results)
    keys = list(settings(results, results.cells[0]))
    head = [*keys, "value", "published", "tolerance", "measured", "difference", "met", "source"]
    rows = [
        [
            *each.settings.values(),
            each.what,
            each.published,
            each.tolerance,
            each.measured,
            each.difference,
            "yes" if each.expectation.met else "**no**",
            each.expectation.source,
        ]
        for each in told
    ]
    return head, rows


def _whole(table: MainTable) -> _Table:
    return [*table.keys, *table.metrics], [[*keys, *values] for keys, values in table.rows]


def _over_rounds(results: StudyResults) -> Iterable[_Table]:
    for course in courses(results):
        cells = [cell for cell in results.cells if cell.name in course.cells]
        keys = list(settings(results, cells[0]))
        rounds = course.rounds
        if len(rounds) > _MOST_ROUNDS:
            last = len(rounds) - 1
            rounds = tuple(
                rounds[round(i * last / (_MOST_ROUNDS - 1))] for i in range(_MOST_ROUNDS)
            )
        head = [*keys, *(f"{course.metric} after round {n}" for n in rounds)]
        rows = [
            [
                *settings(results, cell).values(),
                *(with_interval(course.cells[cell.name].get(n)) for n in rounds),
            ]
            for cell in cells
        ]
        yield head, rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns without any content are left out."""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    ruler = ["---"] * len(head)
    return "\n".join(_row(row[i] for i in used) for row in (head, ruler, *rows))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
