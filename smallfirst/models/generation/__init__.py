"""Free text from a local model: continuous batching, grammars, streaming."""
