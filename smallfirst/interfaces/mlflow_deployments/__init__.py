"""Databricks' serving endpoints through MLflow's deployments client."""
