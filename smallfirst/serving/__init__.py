"""Serving: models behind OpenAI's HTTP interface, with a ledger of every answer.

`app` builds and runs the server, `ledger` keeps its rows; importing this package loads neither.
"""
