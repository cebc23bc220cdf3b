"""Score, label or read rows in bulk: parts that are written once, resumable, here or on a cluster."""
