"""The bars of the gate: each function takes a bar and what was measured, and gives one GateLine.

A bar says what must be shown, so it looks at the end of the interval that is worse for the candidate. The price is
rows: advice on a missed bar is a search over the same rates with more rows, a few milliseconds.
"""
