"""One forward pass of a causal language model on this machine: label scoring, int8, KV cache."""
