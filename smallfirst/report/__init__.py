"""The report: one self-contained HTML file."""

from smallfirst.report.page import ReportData, render, save

__all__ = ["ReportData", "render", "save"]
