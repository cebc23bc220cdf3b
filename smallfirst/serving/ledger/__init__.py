"""One row per answer in SQLite, bodies kept apart."""
