"""Run folders, one below the state folder for each run of a task: models, evaluations, verdicts, certificate, report.

A stage that is called alone finds the latest run; if an earlier stage is missing, the error names the command to run.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from smallfirst.base.errors import ConfigError, StageMissing, TrainingError
from smallfirst.base.files import SharedLock, is_locked, try_lock
from smallfirst.base.paths import home, state_folder
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.out_of_fold import FoldAnswers
from smallfirst.measuring.outcome import share_words
from smallfirst.measuring.verdict import Verdict
from smallfirst.path.project.candidate_registry import CANDIDATES, FINE_TUNED, all_candidates, candidate_names
from smallfirst.routing.certificate.certificate import Certificate

R = TypeVar("R", bound=Record)

FITTED, FINALISTS = "candidates.json", "finalists.json"
"""Files of the FittedCandidates and of the Finalists in a run folder."""
FOLDS = "folds"
"""Folder of the FoldAnswers in a run folder, a file a candidate."""
OUTCOME, VERDICTS, CERTIFICATE, PROMOTED = "outcome.json", "verdicts.json", "certificate.json", "promoted.json"
"""Files of the Outcome, the GateVerdicts, the Certificate and the Promotion."""
KEPT, DOMAIN = "kept.json", "domain.json"
"""Files of the KeptOnTest and the DomainCounts."""


class Promotion(Record):
    """The version that went live."""

    name: str
    """Three-level model name."""
    version: int
    candidate: str
    at: str
    """ISO 8601 in UTC."""
    plan: Literal["small alone", "small first"] = "small alone"
    """Whether it passed its gate by itself, or a certificate lets it answer a part of the requests."""


class FittedCandidates(Record):
    """What the training stage fits into a run folder; saved after each candidate, so that a run can be resumed."""

    ladder: tuple[str, ...]
    """The candidates of the run, the smallest first."""
    fitted: tuple[str, ...] = ()
    dataset_fingerprint: str = ""
    """Of the training rows."""
    mlflow_run_id: str | None = None
    """The MLflow run that figures are logged to; None until all are fitted."""
    minutes: dict[str, float] = {}
    """How long each took to fit, in minutes, by candidate."""
    scores: dict[str, float] = {}
    """Mean score on the rows that choose, in [0, 1], by candidate."""
    left_out: dict[str, str] = {}
    """Why the others of the ladder were left out, by candidate: no time was left, or they gained nothing."""


class Finalists(Record):
    """The candidates that calibration and test rows are asked about; saved before a test row is read."""

    names: tuple[str, ...]
    """At most three, in the order in which the gate tries them."""
    shares: dict[str, float]
    """Share of the gate's level for each, in (0, 1]."""


class GateVerdicts(Record):
    """The gate's verdicts of one run."""

    verdicts: tuple[Verdict, ...]
    """Verdicts on the finalists alone, in their order."""
    winner: str | None
    """The first finalist that passes and that no other clearly beats on test rows; None if none passes."""
    trials: tuple[Verdict, ...] = ()
    """Verdicts on the plans that were tried, in order: because no candidate may go live by its gate alone, or because
    they are expected to be worth more."""

    @property
    def confirmed(self) -> Verdict | None:
        """The plan that may go live; only the last one that was tried may have passed."""
        return next((trial for trial in self.trials if trial.passed), None)

    def of(self, candidate: str) -> Verdict:
        """Return the verdict on one candidate. Raise StageMissing if it was not checked."""
        for verdict in self.verdicts:
            if verdict.candidate == candidate:
                return verdict
        raise StageMissing(f"the gate has no verdict on {candidate}", hint="smallfirst gate task.yaml")


class KeptOnTest(Record):
    """What the certificate covers of all test rows, whether or not the large model was asked them."""

    n_rows: int
    """Test rows."""
    n_kept: int
    """Rows whose small answer the certificate covers."""
    n_wrong: int
    """Wrong answers among them."""


class DomainCounts(Record):
    """What the domain check does to the task's own rows and to foreign ones that nothing was fitted on."""

    declared: float
    """`routing.domain.refuse_own_at_most`."""
    n_fitted: int
    """Own rows by which the limit was found, as a profile without them measures them."""
    n_fitted_beyond: int
    n_own: int
    """Own test rows."""
    n_own_refused: int
    n_own_refused_right: int
    """Refused ones that the small model answers right."""
    foreign_from: str
    """What the foreign rows are."""
    n_foreign: int
    n_caught: int
    uncaught: dict[str, int] = {}
    """How many of the other foreign rows get which answer."""

    @property
    def in_words(self) -> list[str]:
        """The counts as lines of text, shares with 95 % intervals."""
        own, caught = wilson(self.n_own_refused, self.n_own), wilson(self.n_caught, self.n_foreign)
        right = f"; the small model has {self.n_own_refused_right:,} of them right" if self.n_own_refused else ""
        rest = ", ".join(f"{n:,} {how}" for how, n in self.uncaught.items())
        return [
            f"own requests taken for foreign: {self.n_own_refused:,} of {self.n_own:,} test rows, {share_words(own)} "
            f"(declared: at most {100 * self.declared:g} %; {self.n_fitted_beyond:,} of {self.n_fitted:,} rows that "
            f"found the limit){right}",
            f"foreign requests caught: {self.n_caught:,} of {self.n_foreign:,} {self.foreign_from}, "
            f"{share_words(caught)}{f'; of the others {rest}' if rest else ''}",
        ]


class RunFolder:
    """The folder of one run of one task."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def new(cls, task: str) -> RunFolder:
        """Create a new folder; its name sorts by time."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = home() / "tasks" / task / f"{stamp}-{secrets.token_hex(2)}"
        folder.mkdir(parents=True)
        return cls(folder)

    @classmethod
    def latest(cls, task: str, run: str | None = None) -> RunFolder:
        """Return the latest run whose training finished, or the one named `run`. Raise StageMissing without one."""
        runs = [one for one in cls._all(task) if one.is_fitted and run in (None, one.path.name)]
        if not runs:
            what = f"{task} has no finished run" + (f' "{run}"' if run else "")
            if busy := run_under_way(task):
                raise StageMissing(f"{what}: one is under way ({busy})", hint="wait until it ends")
            raise StageMissing(what, hint="smallfirst train task.yaml")
        return runs[-1]

    @classmethod
    def unfinished(cls, task: str) -> RunFolder | None:
        """Return the latest run that was begun if it has no report: some stage of it was interrupted."""
        runs = [one for one in cls._all(task) if any((one.path / name).exists() for name in (FITTED, "events.jsonl"))]
        return runs[-1] if runs and not (runs[-1].path / "report.html").exists() else None

    @classmethod
    def _all(cls, task: str) -> list[RunFolder]:
        return [cls(folder) for folder in sorted((state_folder() / "tasks" / task).glob("*/"))]

    @property
    def is_fitted(self) -> bool:
        found = self.fitted()
        return (self.path / "run.json").exists() if found is None else found.mlflow_run_id is not None

    def fitted(self) -> FittedCandidates | None:
        """Return what has been fitted; None before the training stage."""
        return self.find(FittedCandidates, FITTED)

    def model_folder(self, candidate: str) -> Path:
        return self.path / CANDIDATES.get(candidate).folder

    def save_evaluation(self, evaluation: Evaluation) -> None:
        evaluation.save(self.path / "evaluations" / f"{evaluation.candidate}-{evaluation.split}.json")

    def evaluation(self, candidate: str, split: str) -> Evaluation | None:
        return self.find(Evaluation, f"evaluations/{candidate}-{split}.json")

    def evaluations(self, split: str, names: Iterable[str] | None = None) -> list[Evaluation]:
        """Return the evaluations on a split: of `names`, else of the candidates by size, the large model, the Router.

        Raise StageMissing if there are none.
        """
        wanted = (*(candidate.name for candidate in all_candidates()), "large", "routed") if names is None else names
        found = [self.evaluation(name, split) for name in wanted]
        if not any(found):
            raise StageMissing("nothing has been evaluated yet", hint="smallfirst evaluate task.yaml")
        return [evaluation for evaluation in found if evaluation]

    def save_folds(self, candidate: str, folds: FoldAnswers) -> None:
        folds.save(self.path / FOLDS / f"{candidate}.json")

    def folds(self, candidate: str) -> FoldAnswers | None:
        """Return a candidate's out-of-fold answers; None where it was chosen on selection rows alone."""
        return self.find(FoldAnswers, f"{FOLDS}/{candidate}.json")

    def mlflow_run_id(self) -> str:
        """Return the id of the MLflow run of the fine-tune; where there was none, of the run folder's own."""
        found = self.fitted()
        if found is not None and found.mlflow_run_id is not None:
            return found.mlflow_run_id
        return str(json.loads((self.path / "run.json").read_text(encoding="utf-8"))["run_id"])

    def find(self, kind: type[R], name: str) -> R | None:
        """Return the record saved as `name`; None if the run has not come so far."""
        path = self.path / name
        return kind.load(path) if path.exists() else None

    def read(self, kind: type[R], name: str, *, next_command: str) -> R:
        """Return the record saved as `name`. Raise StageMissing, naming the command that makes it."""
        if (found := self.find(kind, name)) is None:
            raise StageMissing(f"{name} is missing in run {self.path.name}", hint=next_command)
        return found

    def verdicts(self) -> GateVerdicts:
        return self.read(GateVerdicts, VERDICTS, next_command="smallfirst gate task.yaml")

    def certificate(self) -> Certificate:
        return self.read(Certificate, CERTIFICATE, next_command="smallfirst calibrate task.yaml")

    def promoted(self) -> Promotion:
        return self.read(Promotion, PROMOTED, next_command="smallfirst promote task.yaml")

    def live_candidate(self) -> str:
        """Return the candidate that went live from this run; before any did, the largest that is fitted."""
        if promoted := self.find(Promotion, PROMOTED):
            return promoted.candidate
        there = [name for name in candidate_names() if self.model_folder(name).exists()]
        return there[-1] if there else FINE_TUNED


_held: ContextVar[frozenset[Path]] = ContextVar("run locks of this call", default=frozenset())


@contextmanager
def only_run(task: str) -> Iterator[None]:
    """Hold the task against a second run; a stage of the same run may call it again.

    The kernel releases the lock when its process ends, however it ends. Raise TrainingError, with the other's process
    and start, if a run is under way.
    """
    folder = home() / "tasks" / task
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    if path in _held.get():
        yield
        return
    while (descriptor := try_lock(path)) is None:
        refuse_second_run(task)  # unless the other has just ended
    token = _held.set(_held.get() | {path})
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "since": since}).encode(), 0)
        yield
    finally:
        _held.reset(token)
        os.close(descriptor)


def refuse_second_run(task: str) -> None:
    """Raise TrainingError as `only_run`, but write nothing."""
    if busy := run_under_way(task):
        raise TrainingError(f"a run of {task} is under way ({busy})", hint="wait until it ends, or stop that process")


def run_under_way(task: str) -> str:
    """Return process and start of the run of a task that is under way; empty if there is none."""
    path = state_folder() / "tasks" / task / "run.lock"
    if not path.exists() or not is_locked(path):
        return ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']}, since {found['since'][:16].replace('T', ' ')} UTC"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written at this moment
        return "started just now"


def hold_served(task: str) -> SharedLock:
    """Hold the task as one that is served. Raise StageMissing if it is being forgotten at this moment."""
    try:
        return SharedLock(_served_lock(task))
    except BlockingIOError:
        raise StageMissing(f"{task} is being forgotten", hint="smallfirst run task.yaml") from None


@contextmanager
def not_served(task: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the task against being served on this machine. Raise ConfigError if it is, for `wait_s` seconds more."""
    until = time.monotonic() + wait_s
    while (descriptor := try_lock(_served_lock(task))) is None:
        if time.monotonic() >= until:
            raise ConfigError(f"{task} is being served", hint="stop its server or proxy, then try again")
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(descriptor)


def _served_lock(task: str) -> Path:
    folder = home() / "tasks" / task
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "served.lock"
