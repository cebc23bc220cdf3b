"""MLflow traces in the store that the tracking URI names, read as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import tracking_uri
from smallfirst.registry.runs import client, store_errors

MODEL = "mlflow.llm.model"
TOKENS = "mlflow.chat.tokenUsage"
COST = "mlflow.llm.cost"
INPUTS = "mlflow.spanInputs"
OUTPUTS = "mlflow.spanOutputs"
KIND = "mlflow.spanType"
_PAGE = 100


def read_traces(experiment: str) -> Iterator[str]:
    """Yield the traces of an experiment with their spans as JSON, newest first. Raise ConfigError if there is none."""
    mlflow_client = client(tracking_uri())
    with store_errors():
        found = mlflow_client.get_experiment_by_name(experiment)
    if found is None:
        raise ConfigError(f'MLflow has no experiment "{experiment}"', hint="set MLFLOW_TRACKING_URI to its store")
    token: str | None = None
    while True:
        with store_errors():
            page = mlflow_client.search_traces(
                locations=[found.experiment_id], max_results=_PAGE, page_token=token, order_by=["timestamp_ms DESC"]
            )
        yield from (trace.to_json() for trace in page)
        token = page.token
        if not token:
            return
