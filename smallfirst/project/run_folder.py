"""Where a task's runs live, and what each stage has left there for the next.

One folder a run under the state folder: the model, the evaluations, verdicts, certificate and report. Stages called by
hand, one process each, find the latest run; a stage whose forerunner is missing says which command to run.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from smallfirst.errors import StageMissing
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.verdict import Verdict
from smallfirst.paths import home
from smallfirst.project.candidates import CANDIDATES, all_candidates
from smallfirst.records import Record
from smallfirst.routing.certificate.certificate import Certificate

R = TypeVar("R", bound=Record)


class Promotion(Record):
    """What went live, and when."""

    name: str
    """Three-level model name."""
    version: int
    """Version in the registry."""
    candidate: str
    """Which candidate it is."""
    at: str
    """ISO 8601 in UTC."""


class GateVerdicts(Record):
    """The gate's answers of one run."""

    verdicts: tuple[Verdict, ...]
    """Of the smallest candidate first."""
    smallest: str | None
    """Smallest candidate that passes."""

    def of(self, candidate: str) -> Verdict:
        """The verdict on one candidate. Raises StageMissing if it was not checked."""
        for verdict in self.verdicts:
            if verdict.candidate == candidate:
                return verdict
        raise StageMissing(f"the gate has no verdict on {candidate}", hint="smallfirst gate task.yaml")


class RunFolder:
    """The folder of one run of one task."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def new(cls, task: str) -> RunFolder:
        """A fresh folder; its name sorts by time."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = home() / "tasks" / task / f"{stamp}-{secrets.token_hex(2)}"
        folder.mkdir(parents=True)
        return cls(folder)

    @classmethod
    def latest(cls, task: str, run: str | None = None) -> RunFolder:
        """The newest run whose training ended, or the one named `run`. Raises StageMissing if there is none."""
        place = home() / "tasks" / task
        runs = sorted(path.parent for path in place.glob("*/run.json"))
        if run is not None:
            runs = [folder for folder in runs if folder.name == run]
        if not runs:
            wanted = f' "{run}"' if run else ""
            raise StageMissing(f"{task} has no finished run{wanted}", hint="smallfirst train task.yaml")
        return cls(runs[-1])

    @classmethod
    def unfinished(cls, task: str) -> RunFolder | None:
        """The newest run if its training was broken off, else None."""
        runs = sorted(path.parent for path in (home() / "tasks" / task).glob("*/events.jsonl"))
        return cls(runs[-1]) if runs and not (runs[-1] / "run.json").exists() else None

    def model_folder(self, candidate: str) -> Path:
        """Where the files of a candidate's model are."""
        return self.path / CANDIDATES.get(candidate).folder

    def save_evaluation(self, evaluation: Evaluation) -> None:
        """Keep an evaluation."""
        evaluation.save(self._evaluation_path(evaluation.candidate, evaluation.split))

    def evaluation(self, candidate: str, split: str) -> Evaluation | None:
        """An evaluation kept earlier, or None."""
        path = self._evaluation_path(candidate, split)
        return Evaluation.load(path) if path.exists() else None

    def evaluations(self, split: str, names: Iterable[str] | None = None) -> list[Evaluation]:
        """Return the evaluations on a split: of `names`, else of the candidates by size, the large model, the Router.

        Raise StageMissing if there are none.
        """
        wanted = (*(candidate.name for candidate in all_candidates()), "large", "routed") if names is None else names
        found = [self.evaluation(name, split) for name in wanted]
        if not any(found):
            raise StageMissing("nothing has been evaluated yet", hint="smallfirst evaluate task.yaml")
        return [evaluation for evaluation in found if evaluation]

    def mlflow_run_id(self) -> str:
        """Return the id of the MLflow run of the fine-tune."""
        return str(json.loads((self.path / "run.json").read_text(encoding="utf-8"))["run_id"])

    def read(self, kind: type[R], name: str, *, next_command: str) -> R:
        """A record kept under `name`. Raises StageMissing with the command that makes it."""
        path = self.path / name
        if not path.exists():
            raise StageMissing(f"{path.name} is missing in run {self.path.name}", hint=next_command)
        return kind.load(path)

    def verdicts(self) -> GateVerdicts:
        """The gate's answers."""
        return self.read(GateVerdicts, "verdicts.json", next_command="smallfirst gate task.yaml")

    def certificate(self) -> Certificate:
        """The Router's certificate."""
        return self.read(Certificate, "certificate.json", next_command="smallfirst calibrate task.yaml")

    def promoted(self) -> Promotion:
        """What went live from this run."""
        return self.read(Promotion, "promoted.json", next_command="smallfirst promote task.yaml")

    def _evaluation_path(self, candidate: str, split: str) -> Path:
        return self.path / "evaluations" / f"{candidate}-{split}.json"
