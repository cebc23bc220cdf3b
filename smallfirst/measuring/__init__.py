"""Measure a model on rows, calibrate it, and judge it: evaluation, label errors, gate, verdict."""
