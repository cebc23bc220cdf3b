"""HTTP routes: completions, embeddings, invocations, streams."""
