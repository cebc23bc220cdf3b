"""MLflow runs: parameters, curves, files and evaluations of trainings; traces in the same store.

Metrics are written at most every two seconds. A store that fails while a model trains never stops the training.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.base.files import locked
from smallfirst.base.paths import artifact_folder, home, state_folder, tracking_uri
from smallfirst.base.records import Record
from smallfirst.ledger.database import reason
from smallfirst.measuring.evaluate import Evaluation

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 2.0
METRICS_PER_BATCH = 1000  # MLflow's own limits
PARAMS_PER_BATCH = 100
PARAM_CHARS = 6000
TAG_CHARS = 5000
ARTIFACT_ROOT = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
"""Environment variable of MLflow: where files of new experiments go, such as `s3://models/smallfirst`."""

MODEL = "mlflow.llm.model"
TOKENS = "mlflow.chat.tokenUsage"
COST = "mlflow.llm.cost"
INPUTS = "mlflow.spanInputs"
OUTPUTS = "mlflow.spanOutputs"
KIND = "mlflow.spanType"
"""What MLflow calls the parts of a trace."""
_TRACES_PER_PAGE = 100

UNTRACKED = "untracked"
"""Id of a run of which MLflow knows nothing."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackedRun:
    """One existing MLflow run; as a context manager it ends FINISHED, FAILED (error) or KILLED (stopped)."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._buffer: list[Metric] = []
        self._flushed_at = time.monotonic()
        self._ended = False

    def log_metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the values with the next batch; None (not measured) is left out."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._buffer += [
            Metric(metric_name(name), float(value), now_ms, step) for name, value in values.items() if value is not None
        ]
        if time.monotonic() - self._flushed_at >= FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write the buffer, or keep it for the next try."""
        try:
            self.write_metrics()
        except Exception as error:  # a curve is never worth a training run, whatever the store's driver raises
            log.warning("%d metrics wait for the tracking store: %s", len(self._buffer), reason(error))

    def write_metrics(self) -> None:
        """Write the buffer. Raise what the store raises."""
        self._flushed_at = time.monotonic()
        while self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer[:METRICS_PER_BATCH])
            del self._buffer[:METRICS_PER_BATCH]

    def log_artifact(self, path: Path, inside: str = "") -> None:
        """Copy a file or a folder into the folder `inside` of the run."""
        with store_errors():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), f"{inside}/{path.name}".lstrip("/"))
            else:
                self._client.log_artifact(self.run_id, str(path), inside or None)

    def log_json(self, name: str, record: Record | Mapping[str, Any] | Sequence[Any]) -> str:
        path = name if name.endswith(".json") else f"{name}.json"
        plain = record.model_dump(mode="json") if isinstance(record, Record) else record
        with store_errors():
            self._client.log_text(self.run_id, json.dumps(plain, ensure_ascii=False, indent=2), path)
        return path

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with store_errors():
            for name, value in tags.items():
                self._client.set_tag(self.run_id, name, value[:TAG_CHARS])

    def finish(self, status: Status = "FINISHED") -> None:
        if self._ended:
            return
        self.flush()
        with store_errors():
            self._client.set_terminated(self.run_id, status)
        self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        try:
            self.set_tags({"error": f"{type(error).__name__}: {error}"})
            # Interrupt, SystemExit and a cancelled asyncio task are no Exception: somebody stopped the run.
            self.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        except SmallfirstError as second:
            log.warning("could not close run %s: %s", self.run_id, reason(second))  # the first error matters


class UntrackedRun(TrackedRun):
    """A run of which nothing is written, since another process does or since it is a part of a larger one."""

    def __init__(self, run_id: str = "") -> None:
        self.run_id, self._ended = run_id, True

    def log_metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        pass

    def write_metrics(self) -> None:
        pass

    def log_artifact(self, path: Path, inside: str = "") -> None:
        pass

    def log_json(self, name: str, record: Record | Mapping[str, Any] | Sequence[Any]) -> str:
        return name

    def set_tags(self, tags: Mapping[str, str]) -> None:
        pass


def open_run(
    experiment: str, run_name: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> TrackedRun:
    """Open a new run of `experiment`, which is created if missing. Parameter values are cut at 6,000 characters."""
    store = client()
    from mlflow.entities import Param

    written = [Param(metric_name(k), shorten(str(v), PARAM_CHARS)) for k, v in (params or {}).items()]
    with store_errors():
        cut_tags = {name: value[:TAG_CHARS] for name, value in (tags or {}).items()}
        opened = store.create_run(experiment_id(store, experiment), run_name=run_name, tags=cut_tags)
        for start in range(0, len(written), PARAMS_PER_BATCH):
            store.log_batch(opened.info.run_id, params=written[start : start + PARAMS_PER_BATCH])
    return TrackedRun(store, opened.info.run_id)


def resume_run(run_id: str) -> TrackedRun:
    """Set the run `run_id` to running again and return it. Raises SmallfirstError if it is unknown."""
    if run_id == UNTRACKED:
        return UntrackedRun(run_id)
    store = client()
    with store_errors():
        store.update_run(run_id, status="RUNNING")
    return TrackedRun(store, run_id)


def tracked_run(run_id: str) -> TrackedRun:
    """Return the run `run_id` as it stands."""
    return UntrackedRun(run_id) if run_id == UNTRACKED else TrackedRun(client(), run_id)


def find_runs(experiment: str, names: Iterable[str]) -> list[str]:
    """Return the ids of the runs of an experiment that have these names."""
    if not tracking_uri(create=False):
        return []
    store = client()
    with store_errors():
        found = store.get_experiment_by_name(experiment)
        ids = [found.experiment_id] if found else []
        wanted = [f"attributes.run_name = '{name}'" for name in names] if ids else []
        return [run.info.run_id for filter_string in wanted for run in store.search_runs(ids, filter_string)]


def run_files(run_id: str) -> list[Path]:
    """Return the folders of a run's files that are in the state folder."""
    places = (state_folder() / "artifacts" / run_id, state_folder() / "downloads" / run_id)
    return [place for place in places if run_id and place.is_dir()]


def delete_run(run_id: str) -> None:
    """Mark a run as deleted in MLflow, for `mlflow gc`, and delete its files in the state folder."""
    store = client()
    from mlflow.exceptions import MlflowException

    with store_errors(), suppress(MlflowException):  # somebody has deleted it before
        store.delete_run(run_id)
    for place in run_files(run_id):
        shutil.rmtree(place)


def log_evaluation(run_id: str, evaluation: Evaluation) -> str:
    """Store the whole evaluation as JSON and metrics; return its path inside the run.

    Raise SmallfirstError if the store refuses it.
    """
    run = tracked_run(run_id)
    metrics: dict[str, float | None] = {"n": evaluation.accuracy.n}
    for name, estimate in {"accuracy": evaluation.accuracy, **evaluation.measures}.items():
        metrics |= {name: estimate.value, f"{name}.low": estimate.low, f"{name}.high": estimate.high}
    for name in ("cost_usd_per_1k", "p50_ms", "p95_ms", "requests_per_s"):
        metrics[name] = getattr(evaluation, name)
    run.log_metrics(0, {f"{evaluation.candidate}/{evaluation.split}/{name}": value for name, value in metrics.items()})
    with store_errors():
        run.write_metrics()
    return run.log_json(f"evaluations/{evaluation.candidate}-{evaluation.split}", evaluation)


def read_traces(experiment: str) -> Iterator[str]:
    """Yield the traces of an experiment with their spans as JSON, newest first. Raise ConfigError if there is none."""
    mlflow_client = client()
    with store_errors():
        found = mlflow_client.get_experiment_by_name(experiment)
    if found is None:
        raise ConfigError(f'MLflow has no experiment "{experiment}"', hint="set MLFLOW_TRACKING_URI to its store")
    token: str | None = None
    while True:
        with store_errors():
            page = mlflow_client.search_traces(
                locations=[found.experiment_id],
                max_results=_TRACES_PER_PAGE,
                page_token=token,
                order_by=["timestamp_ms DESC"],
            )
        yield from (trace.to_json() for trace in page)
        token = page.token
        if not token:
            return


def client() -> MlflowClient:
    """Return MLflow's client for this project's store and `MLFLOW_REGISTRY_URI`; telemetry and logs off."""
    _no_telemetry()
    from mlflow.tracking import MlflowClient

    for logger in ("alembic", "mlflow.store.db", "mlflow.store.db.utils"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # they log what they raise, with a traceback
    uri = tracking_uri()
    # MLflow creates a new store's tables without a lock: two processes at once would fail.
    one_at_a_time = locked(home() / "mlflow.lock") if uri.startswith("sqlite:") else nullcontext()
    with store_errors(), one_at_a_time:
        if uri.startswith("sqlite:"):
            _create_store(uri)
        return MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI", "").strip() or uri)


def _create_store(uri: str) -> None:
    """Create a new SQLite store as a whole: MLflow reads none whose tables a kill or a full disk has cut off."""
    from mlflow.tracking import MlflowClient
    from sqlalchemy import make_url

    path = Path(make_url(uri).database or "")
    if path.exists() or not path.parent.is_dir():
        return
    with TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        draft = Path(folder) / path.name
        MlflowClient(make_url(uri).set(database=str(draft)).render_as_string(hide_password=False))
        draft.replace(path)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the MLflow store into a SmallfirstError that names the store."""
    _no_telemetry()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        # Not "from error": a traceback would show the address with its password.
        raise SmallfirstError(
            f"the MLflow store {tracking_uri()} refused: {reason(error)}",
            hint="check MLFLOW_TRACKING_URI, the disk and the permissions of SMALLFIRST_HOME; a password in the "
            "variable is not stored, so it must be set where a job or an endpoint is started again",
        ) from None


def metric_name(name: str) -> str:
    """Return `name` with `_` for each character that MLflow refuses in metric and parameter names."""
    return re.sub(r"[^/\w.\- ]", "_", name)


def _no_telemetry() -> None:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow reads both when it is imported
    os.environ["DO_NOT_TRACK"] = "true"


def experiment_id(store: MlflowClient, name: str) -> str:
    """Return the id of the experiment of this name, created if missing."""
    from mlflow.exceptions import MlflowException

    found = store.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A database stores no files, so they go to the state folder or an object store; a server has a store of its own.
    chosen = os.environ.get(ARTIFACT_ROOT, "").strip().rstrip("/")
    location: str | None = f"{chosen}/{quote(name, safe='')}" if chosen else artifact_folder().as_uri()
    if re.match(r"https?:|databricks|uc:", tracking_uri()):
        location = None
    try:
        return str(store.create_experiment(name, artifact_location=location))
    except MlflowException:
        found = store.get_experiment_by_name(name)  # another process may have created it
        if found is None:
            raise
        return str(found.experiment_id)


def shorten(text: str, limit: int) -> str:
    """Return the text with an ellipsis as its last character if it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
