"""What is wrong with rows: bad fields, leaks, near-duplicates, overlaps, lengths."""
