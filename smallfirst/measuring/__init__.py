"""Measure a model on rows, calibrate it, and judge it: evaluation, learning curves, label errors, gate, verdict."""
