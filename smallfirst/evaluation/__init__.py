"""One way to measure everything that answers."""
