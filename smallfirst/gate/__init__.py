"""The gate: checks that a candidate must pass before it goes live.

A check says what must be shown, so it looks at the end of the interval that is worse for the candidate. A failed check
says how many more rows would show it, found by a search over the same rates with more rows.
"""
