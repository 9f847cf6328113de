"""The report: records → data → figures → one self-contained HTML page, and the tables beside it.

pandas and plotly are imported when a table or a figure is made, not before.
"""

from mvsearch.report.data import StudyData, front_table, trials_table, write_tables
from mvsearch.report.drawing import figures
from mvsearch.report.page import write_report

__all__ = ["StudyData", "figures", "front_table", "trials_table", "write_report", "write_tables"]
