"""What a study shows: tables, figures, the page."""

from typing import TYPE_CHECKING

from mvsearch import lazily

if TYPE_CHECKING:
    from mvsearch.report.drawing import figures
    from mvsearch.report.page import write_report
    from mvsearch.report.tables import front_table, trials_table, write_tables

__all__ = ["figures", "front_table", "trials_table", "write_report", "write_tables"]

__getattr__ = lazily(
    __name__,
    {
        "figures": "drawing",
        "write_report": "page",
        "front_table": "tables",
        "trials_table": "tables",
        "write_tables": "tables",
    },
)
