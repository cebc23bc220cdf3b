"""Intervals, bounds, sequential tests and sample sizes. Pure functions over counts and arrays."""
