"""One forward pass of a causal language model on this machine: label scoring, tokens, weights."""
