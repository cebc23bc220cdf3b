"""Logs of other products as exchanges: one reader a format, chosen by what the lines look like."""
