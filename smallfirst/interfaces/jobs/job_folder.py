"""A job as stored in its folder: any process reads it, only the process that runs the job writes.

Its rows are read once from their addresses, then kept there, so that a later edit changes nothing. What its base model
must be is checked before it starts.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import secrets
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pydantic

from smallfirst.base.errors import Cancelled, ConfigError, DataError, MissingExtra, Problem, WeightsNotFound
from smallfirst.base.files import is_locked, locked
from smallfirst.base.paths import home
from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset
from smallfirst.data.row_formats import ROW_FORMATS
from smallfirst.data.sources.folders import is_volume, volume_path
from smallfirst.data.sources.load import load_rows
from smallfirst.models.catalog import CATALOG, find_weights, pulled_path
from smallfirst.training.config import TrainConfig
from smallfirst.training.config import parse_duration as parse_duration
from smallfirst.training.events import Event as Event
from smallfirst.training.events import EventLog
from smallfirst.training.recipe import RECIPES

log = logging.getLogger(__name__)

JOB_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
R = TypeVar("R", bound=Record)
State = Literal["PENDING", "QUEUED", "STARTING", "RUNNING", "TERMINATING", "COMPLETED", "STOPPED", "FAILED"]

_STATES: dict[str, State] = {
    "CREATED": "PENDING",
    "REQUEUED": "PENDING",
    "QUEUED": "QUEUED",
    "STARTED": "STARTING",
    "TRAIN_STARTED": "RUNNING",
    "RESUMED": "RUNNING",
    "COMPLETED": "COMPLETED",
    "STOPPED": "STOPPED",
    "FAILED": "FAILED",
}
"""State after each event; other events change nothing."""
TERMINAL_STATES: frozenset[str] = frozenset({"COMPLETED", "STOPPED", "FAILED"})
WAITING_STATES: frozenset[str] = frozenset({"PENDING", "QUEUED"})


class JobSpec(Record):
    """A fine-tune to run."""

    name: str = pydantic.Field(pattern=f"^{JOB_NAME.pattern}$")
    recipe: Literal["chat", "text"]
    """`chat`: conversations or prompts with responses · `text`: continued pre-training."""
    model: str
    weights: str | None = None
    """Folder of weights to start from; None: those of `model`."""
    train_rows: str
    eval_rows: str | None = None
    """Address of the rows whose loss selects the best epoch; None: the last epoch is kept."""
    eval_prompts: tuple[str, ...] = ()
    max_rows: int | None = None
    """Most rows of an address; None: as many as can be read at all."""
    register_to: str
    experiment: str
    config: TrainConfig
    checkpoint_every_s: float = pydantic.Field(default=60, ge=0)
    """Least time between two checkpoints; a killed process loses at most this much work."""
    created_by: str
    created_at: datetime
    """When it was submitted; jobs run in this order."""
    submitted: dict[str, Any] = {}
    """The original request, for the interface it came through."""
    working_folder: Path = Path()
    """Where it was submitted, filled in then; relative addresses and MLFLOW_TRACKING_URI start there."""
    environment: dict[str, str] = {}


class JobProgress(Record):
    """How far training is; written about once a second."""

    share: float
    """Share of the training done, in [0, 1]."""
    seconds_left: float | None
    """Seconds until training ends at this rate; None at the first step."""
    at: datetime


class MlflowIds(Record):
    """The job's run in MLflow."""

    run_id: str
    experiment_id: str


class JobResult(Record):
    """The registered model."""

    model: str
    version: int
    best_epoch: int
    """Epoch whose weights were kept, from 1."""

    @property
    def reference(self) -> str:
        """The version as `versions.resolve` takes it."""
        return f"{self.model}/{self.version}"


def new_job_name(model: str) -> str:
    """Return a new name for a job that fine-tunes `model`: its last part and six random hex digits."""
    last = re.sub(r"[^A-Za-z0-9_]+", "-", re.split(r"[/\\]", model.rstrip("/\\"))[-1]).strip("-").lower()
    return f"{last[:60] or 'model'}-{secrets.token_hex(3)}"


def user_name() -> str:
    """Return the login name of the current user, or the user id if it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under an id without a name
        return f"user-{os.getuid()}"


def utc_now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


class JobFolder:
    """One job on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.log = EventLog(folder / "events.jsonl")
        self.run_folder = folder / "run"
        """Folder of the training: its own events, checkpoint and model."""
        self.training_log = EventLog(self.run_folder / "events.jsonl")
        self.output = folder / "log.txt"
        """Standard output and error of the process."""
        self.lock = folder / "alive.lock"
        """Held as long as a process runs the job."""
        self._end_lock = folder / "end.lock"
        """Held while a stop is granted, the training is declared finished or the end is written."""
        self._cancel_file = self.run_folder / "cancel"  # the file that train() looks for; its name's module needs torch

    @property
    def output_tail(self) -> str:
        """The last lines that its process printed; empty if it printed nothing."""
        try:
            with self.output.open("rb") as file:
                file.seek(max(0, self.output.stat().st_size - 5000))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-12:])
        except OSError:
            return ""

    @cached_property
    def spec(self) -> JobSpec:
        """Specification. Raise ConfigError if the file is damaged."""
        return JobSpec.load(self.folder / "job.json")

    @property
    def events(self) -> tuple[Event, ...]:
        return self.log.read()

    @property
    def progress(self) -> JobProgress | None:
        return self._read(JobProgress, "progress.json")

    @property
    def tracking(self) -> MlflowIds | None:
        return self._read(MlflowIds, "mlflow.json")

    @property
    def result(self) -> JobResult | None:
        return self._read(JobResult, "result.json")

    @property
    def state(self) -> State:
        return state_after(self.events, cancelled=self.cancelled)

    @property
    def estimated_end(self) -> datetime | None:
        """When the training will end, UTC: at its present rate, before its first step as was estimated.

        None unless it is under way and not overdue.
        """
        progress, events, state = self.progress, self.events, self.state
        if state not in ("STARTING", "RUNNING") or any(event.kind == "TRAIN_FINISHED" for event in events):
            return None
        if state == "RUNNING" and progress is not None and progress.seconds_left is not None:
            end = progress.at + timedelta(seconds=progress.seconds_left)
        else:
            began = [event.at for event in events if event.kind == "STARTED"][-1]
            seconds = [event.values["seconds"] for event in events if event.kind == "ESTIMATED"]
            if not seconds:
                return None
            end = datetime.fromisoformat(began) + timedelta(seconds=seconds[-1])
        return end if end > datetime.now(UTC) else None

    @property
    def ended_at(self) -> datetime | None:
        return datetime.fromisoformat(self.events[-1].at) if self.ended else None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def alive(self) -> bool:
        """True while a process runs the job or waits for its turn."""
        return is_locked(self.lock)

    @property
    def cancelled(self) -> bool:
        return self._cancel_file.exists()

    def request_stop(self) -> bool:
        """Ask the process to stop within one step, or before it begins; return False if it has finished training."""
        with locked(self._end_lock):
            kinds = [event.kind for event in self.events if event.kind in (*_STATES, "TRAIN_FINISHED")]
            if self.ended or kinds[-1:] == ["TRAIN_FINISHED"]:
                return False
            self.run_folder.mkdir(exist_ok=True)
            self._cancel_file.touch()
            return True

    def finish_training(self, message: str, **values: Any) -> None:
        """Record that only registering is left: no stop is granted any more. Raise Cancelled if one was."""
        with locked(self._end_lock):
            if self.cancelled:
                raise Cancelled("cancelled after the last step")
            self.log.append("TRAIN_FINISHED", message, **values)

    def end(self, kind: Literal["COMPLETED", "STOPPED", "FAILED"], message: str) -> None:
        """Record the end, which is final: STOPPED whatever `kind` is if a stop was granted."""
        with locked(self._end_lock):
            if not self.ended:
                self.log.append("STOPPED" if self.cancelled else kind, message)

    def clear_stop_request(self) -> None:
        self._cancel_file.unlink(missing_ok=True)

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of weights that a later job can start from: the best epoch so far, once there is one."""
        model = self.run_folder / "model"
        return [model] if (model / "smallfirst.json").is_file() else []

    def _read(self, kind: type[R], name: str) -> R | None:
        path = self.folder / name
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def state_after(events: tuple[Event, ...], *, cancelled: bool) -> State:
    """Return the state of a job after `events`."""
    states = [_STATES[event.kind] for event in events if event.kind in _STATES]
    state = states[-1] if states else "PENDING"
    return "TERMINATING" if cancelled and state not in TERMINAL_STATES else state


class JobRows(NamedTuple):
    """Training and evaluation rows of one job."""

    train: Dataset
    evaluation: Dataset | None

    @classmethod
    def keep(cls, job: JobFolder) -> None:
        """Read the rows from their addresses into the job's folder, unless they are there; one process at a time."""
        spec = job.spec
        with locked(job.folder.parent / "reading.lock"):
            if not (job.folder / "rows" / "train.json").is_file():
                evaluation = read_rows(spec.eval_rows, spec) if spec.eval_rows else None
                cls(read_rows(spec.train_rows, spec), evaluation).save(job.folder)

    @classmethod
    def load(cls, job: JobFolder) -> JobRows:
        evaluation = job.folder / "rows" / "evaluation.json"
        train = Dataset.load(job.folder / "rows" / "train.json")
        return cls(train, Dataset.load(evaluation) if evaluation.is_file() else None)

    def save(self, folder: Path) -> None:
        """Write the rows into a job's folder, the training rows last: they mark the copy as complete."""
        if self.evaluation is not None:
            self.evaluation.save(folder / "rows" / "evaluation.json")
        self.train.save(folder / "rows" / "train.json")


def read_rows(address: str, spec: JobSpec) -> Dataset:
    """Return the rows at an address. Raise DataError naming those that do not fit the recipe, and as `load_rows`."""
    data = load_rows(address, max_rows=spec.max_rows)
    kind = RECIPES.get(spec.recipe)
    if wrong := [e for e in data.examples if e.shape not in kind.row_formats]:
        problems = [
            Problem(e.path, e.line, f"a row of {ROW_FORMATS[e.shape]}; this recipe takes {kind.rows_in_words}")
            for e in wrong
        ]
        raise DataError(f"{address}: {len(wrong)} of {len(data)} rows do not fit the recipe", problems)
    return data


def jobs_folder() -> Path:
    """Return the folder of all jobs, created if missing."""
    folder = home() / "jobs"
    folder.mkdir(exist_ok=True)
    return folder


def lookup(name: str) -> JobFolder | None:
    """Return the job called `name`, or None, without a look at other jobs."""
    job = JobFolder(jobs_folder() / name) if JOB_NAME.fullmatch(name) else None
    return job if job is not None and (job.folder / "job.json").is_file() else None


def stored_jobs() -> list[JobFolder]:
    """Return all jobs, newest first; one that cannot be read does not hide the others."""
    found = []
    for path in jobs_folder().glob("*/job.json"):  # written last
        job = JobFolder(path.parent)
        try:
            found.append((job.spec.created_at, job.name, job))
        except ConfigError as error:
            log.warning("skipped a damaged job: %s", error)
    return [job for *_, job in sorted(found, key=lambda one: one[:2], reverse=True)]


def require_training_packages() -> None:
    """Raise MissingExtra where nothing can be trained."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra("Fine-tuning", "train")


def trainable_models() -> dict[str, int | None]:
    """Return the longest input in tokens of each trainable model of the catalogue; None until its weights are here."""
    folders = {entry.name: pulled_path(entry) for entry in CATALOG if entry.kind == "transformers"}
    return {name: _longest_input(folder) for name, folder in folders.items()}


def context_length(model: str) -> int | None:
    """Return the longest input in tokens, if known. Raise ConfigError if untrainable, WeightsNotFound if absent."""
    entry = next((e for e in CATALOG if e.name.casefold() == model.casefold()), None)
    try:
        folder = None if entry and entry.kind != "transformers" else find_weights(model, download=False)
    except WeightsNotFound:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        if entry is not None or (re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not offline):
            return None  # the job's process may fetch it
        raise
    if folder is None or folder.is_file():
        raise ConfigError(
            f'"{model}" cannot be trained: its weights are GGUF or no language model',
            hint="choose one of foundation_model.get_models(), or a folder of safetensors",
        )
    return _longest_input(folder)


def _longest_input(folder: Path) -> int | None:
    config = folder / "config.json"
    found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    limit = found.get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def weights_folder(address: str) -> Path:
    """Return the folder of safetensors at a path or volume. Raise ConfigError if it is absent or incomplete."""
    folder = volume_path(address) if is_volume(address) else Path(address).expanduser().absolute()
    parts = {"config.json": "config.json", "safetensors": "*.safetensors", "tokenizer": "token*"}
    missing = [part for part, pattern in parts.items() if not any(folder.glob(pattern))]
    if missing:
        raise ConfigError(
            f"{folder} holds no {', no '.join(missing)}",
            hint="name a folder with config.json, safetensors and tokenizer, such as a run's; no pickle is read",
        )
    return folder
