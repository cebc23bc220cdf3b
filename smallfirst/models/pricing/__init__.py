"""Prices of tokens and machine time, and the lines of a bill, each with its price and source."""
