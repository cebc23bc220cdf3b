"""Metrics of labels and fields, and when two values count as equal."""
