"""Everything that answers a request: one Model protocol and its implementations."""
