"""Rows from text files, workbooks, Parquet, Delta tables, volumes and folders."""
