"""MLflow: model versions, runs, evaluations, traces, artifacts."""
