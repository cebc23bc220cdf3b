"""HTTP routes: completions, embeddings, invocations."""
