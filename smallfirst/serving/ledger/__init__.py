"""One row per answer in SQLite or PostgreSQL, sums by hour beside them, bodies kept apart."""
