"""What an audited run shows: a summary, a terminal report and a self-contained HTML page.

Everything here reads a run directory and nothing else: no torch, no model, no data set,
so a finished run is reported again anywhere, without computing anything anew.
"""

from fedleak.reporting.page import write_page
from fedleak.reporting.tables import SummaryRow, summary
from fedleak.reporting.terminal import expectations_table, terminal_report

__all__ = ["SummaryRow", "expectations_table", "summary", "terminal_report", "write_page"]
