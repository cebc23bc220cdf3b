"""A project folder: task.yaml, rows, run folders."""
