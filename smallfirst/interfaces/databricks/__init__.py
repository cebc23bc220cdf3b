"""Databricks' foundation-model calls on local jobs."""
