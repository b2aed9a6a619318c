"""What a study shows: a terminal report, a page with figures, a section of Markdown.

Everything here reads ``study.json`` and ``study.parquet``, which the study's aggregation
wrote, and nothing else.
"""

from fedleak.reporting.study.markdown import study_markdown
from fedleak.reporting.study.page import write_study_page
from fedleak.reporting.study.results import StudyResults, read_study
from fedleak.reporting.study.terminal import study_report

__all__ = ["StudyResults", "read_study", "study_markdown", "study_report", "write_study_page"]
