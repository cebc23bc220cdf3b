"""Free text from a local model: one batch of the requests that wait, grammars, streaming."""
