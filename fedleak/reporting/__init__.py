"""What an audited run or a study shows: tables, a terminal report and an HTML page.

Everything here reads a directory and nothing else: no torch, no model, no data set, so
what is finished is reported again anywhere, without computing anything anew.
"""

from __future__ import annotations

from pathlib import Path

from fedleak.captures import StudyLayout
from fedleak.reporting.page import write_page
from fedleak.reporting.study import study_markdown, study_report, write_study_page
from fedleak.reporting.tables import SummaryRow, summary
from fedleak.reporting.terminal import terminal_report


def report(directory: str | Path) -> Path:
    """Write the page of an audited run, or of a study, and return its path.

    Args:
        directory: The directory that `fedleak.run` made.

    Raises:
        ResourceError: It is neither, or nothing was audited yet.
        CaptureError: A file of it is damaged; the message names the file.
    """
    place = Path(directory)
    return write_study_page(place) if StudyLayout(place).exists else write_page(place)


__all__ = [
    "SummaryRow",
    "report",
    "study_markdown",
    "study_report",
    "summary",
    "terminal_report",
    "write_page",
    "write_study_page",
]
