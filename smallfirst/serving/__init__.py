"""The HTTP server: OpenAI-compatible routes, admission, keys, ledger.

`app` builds and runs the server, `ledger` keeps its rows; importing this package loads neither.
"""
