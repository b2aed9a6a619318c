"""The HTML page of a study: one file, offline and without scripts."""

from __future__ import annotations

from pathlib import Path

from fedleak.reporting.page import fill, put_page
from fedleak.reporting.study.comparison import compared
from fedleak.reporting.study.figures import MOST_SERIES, figures
from fedleak.reporting.study.pictures import pictures
from fedleak.reporting.study.results import read_study
from fedleak.reporting.study.tables import (
    answer,
    extent,
    failures,
    main_table,
    note_on_intervals,
    settings,
    trade_table,
    trades,
    verdicts,
    worst_missed,
)


def write_study_page(directory: Path) -> Path:
    """Write ``report/index.html`` into the directory of a study and return its path.

    Args:
        directory: The study's directory.

    Raises:
        ResourceError: There is no study, or nothing of it was aggregated.
        CaptureError: A file of it is damaged; the message names the file.
    """
    results = read_study(directory)
    page = fill(
        "study/page.html.j2",
        results=results,
        title=results.layout.root.resolve().name,
        answer=answer(results),
        extent=extent(results),
        missed=worst_missed(results),
        table=main_table(results),
        shown=pictures(results),
        offered=[(trade.leakage, trade_table(results, trade)) for trade in trades(results)],
        note=note_on_intervals(results),
        compared=compared(results),
        verdicts=verdicts(results),
        keys=list(settings(results, results.cells[0])),
        settings={cell.name: list(settings(results, cell).values()) for cell in results.cells},
        failures=failures(results),
        figures=figures(results),
        most_series=MOST_SERIES,
        measured={value.attack.split()[0] for value in results.values if value.attack},
    )
    return put_page(results.layout.root, page)
