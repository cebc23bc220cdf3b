"""Measure a model on rows: scores, calibration, label errors, learning curves."""
