"""Rows from text files, Parquet, Delta tables, volumes and folders."""
