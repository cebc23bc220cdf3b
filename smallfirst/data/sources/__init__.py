"""Rows from text files, Parquet, Delta tables, volumes, the Hugging Face hub and folders."""
