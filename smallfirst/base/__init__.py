"""Foundations: errors, records, files, paths, registries of parts, progress, and the place where Ray is joined."""
