"""Rows in: read, checked, split; every bad row named with file and line."""
