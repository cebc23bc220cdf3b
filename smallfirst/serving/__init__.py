"""The HTTP server: OpenAI-compatible routes, admission, keys, ledger."""
