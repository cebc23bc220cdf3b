"""Thresholds with a proven error bound, chosen on calibration rows."""
