"""A study as a section of Markdown, for a document of many studies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedleak.reporting import text
from fedleak.reporting.study.results import read_study
from fedleak.reporting.study.tables import (
    answer,
    extent,
    failures,
    lines,
    metrics,
    note_on_intervals,
    place,
    with_interval,
)


def study_markdown(directory: Path) -> str:
    """Published and measured values, or else all that was measured, and the command.

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
    parts.append(f"{answer(results)} {extent(results)}")
    parts += results.notes
    if results.expectations:
        cells = {cell.name: place(results, cell) for cell in results.cells}
        head = ["cell", "measured value", "published", "measured", "difference", "met", "source"]
        rows = [
            [
                cells[e.cell] + (f", minus {cells[e.minus]}" if e.minus else ""),
                e.subject,
                text.requirement(e.comparison, e.value, e.tolerance),
                text.plain(e.measured),
                text.plain(e.difference),
                "yes" if e.met else "**no**",
                e.source,
            ]
            for e in results.expectations
        ]
    else:
        names = metrics(results)
        head = [*results.short_keys.values(), "attack", "layer", *names]
        rows = [
            [
                *(line.cell.settings.get(key, "") for key in results.keys),
                line.attack or "",
                line.layer or "",
                *(with_interval(line.values.get(name)) for name in names),
            ]
            for line in lines(results)
        ]
        parts.append(note_on_intervals(results))
    parts.append(_table(head, rows))
    parts += [f"- {said} ({text.count(count, 'time')})" for said, count in failures(results)]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns without any content are left out."""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    ruler = ["---"] * len(head)
    return "\n".join(_row(row[i] for i in used) for row in (head, ruler, *rows))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
