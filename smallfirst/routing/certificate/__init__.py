"""Confidence thresholds with a proven bound on the error, chosen on calibration rows."""
