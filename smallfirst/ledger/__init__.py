"""One database: a row per answer, sums by hour, keys and their limits, in SQLite or PostgreSQL."""
