"""The report: one self-contained HTML file on what was measured and what it costs."""

from smallfirst.report.page import ReportData, render, save

__all__ = ["ReportData", "render", "save"]
