"""Intervals, bounds, sequential tests and sample sizes: how sure a number is. Pure functions."""
