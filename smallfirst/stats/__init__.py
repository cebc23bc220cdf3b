"""Intervals, bounds, sequential tests and sample sizes; pure functions."""
