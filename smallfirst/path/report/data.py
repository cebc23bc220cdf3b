"""The data of a report: one frozen record, so a page can be made again at any time."""

from __future__ import annotations

import platform
import shlex
from datetime import UTC, datetime
from importlib.metadata import distributions
from typing import Literal

import pydantic

import smallfirst
from smallfirst.data.copies import LeakReport
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.verdict import Verdict, nearest_to_passing
from smallfirst.models.pricing import MachinePrice, format_usd
from smallfirst.path.diagnostics import find_split_leaks
from smallfirst.path.project.candidate_registry import FINE_TUNED, candidate_names
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FOLDS, RunFolder
from smallfirst.path.report.formats import capitalize_first
from smallfirst.path.summary import RunRecord, read_run


class ReportData(RunRecord):
    """Everything a report shows."""

    title: str
    task: str
    part: Literal["label", "field", ""] = "label"
    """Kind of part that an evaluation counts; empty if the task has none."""
    request_noun: str = "requests"
    """What the rows are called, in the plural."""
    evaluations: tuple[Evaluation, ...] = pydantic.Field(min_length=1)
    """Test evaluations, smallest first: any of words, encoder, tuned, base, small, large, routed."""
    calibration_evaluations: tuple[Evaluation, ...] = ()
    """Evaluations on calibration rows, listed under how it was measured."""
    training_usd: float = 0.0
    """What the fine-tune cost at the machine's price."""
    machine: MachinePrice = MachinePrice()
    requests_per_month: int = 1_000_000
    review_command: str = ""
    """Command that writes training rows with a probably wrong label to a file."""
    leaks: LeakReport | None = None
    notes: tuple[str, ...] = ()
    made_at: datetime
    versions: dict[str, str] = {}
    """Versions of the packages behind the figures."""

    @property
    def recommended(self) -> str | None:
        """The candidate that goes live; before anything is decided, the one that was chosen of those that pass."""
        return self.outcome.candidate if self.outcome else self.gate.winner

    @property
    def served(self) -> str | None:
        """The path that answers: `routed` where a part of the requests does not stay small, else the candidate."""
        outcome = self.outcome
        partly = outcome is not None and (outcome.kind == "small first" or outcome.rest == "refused")
        return "routed" if partly and self.evaluation("routed") is not None else self.recommended

    @property
    def promised(self) -> bool:
        """True if answers are given under the certificate's promise; before anything is decided, if it was issued."""
        issued = self.certificate is not None and self.certificate.issued
        return issued and (self.outcome is None or bool(self.outcome.promise))

    @property
    def focus(self) -> Evaluation:
        """The small candidate that the page looks into: the recommended one, else the nearest to passing the gate."""
        gated = [v for v in self.gate.verdicts if v.candidate != "large" and self.evaluation(v.candidate)]
        nearest = nearest_to_passing(gated).candidate if gated else FINE_TUNED
        names = (self.recommended, self.gate.winner, nearest, FINE_TUNED)
        return next((e for name in names if (e := self.evaluation(name))), self.evaluations[0])

    def evaluation(self, candidate: str | None) -> Evaluation | None:
        return next((e for e in self.evaluations if e.candidate == candidate), None)

    def verdict(self, candidate: str) -> Verdict | None:
        return next((v for v in self.gate.verdicts if v.candidate == candidate), None)


def report_data(project: Project, run_folder: RunFolder) -> ReportData:
    """Return everything that the report of a run shows; log what was found amiss in the rows."""
    file, task = project.file, project.task
    leaks, before = find_split_leaks(project, run_folder), (*candidate_names(), "large")
    project.progress.log(f"diagnostics: {leaks.n_leaked} of {leaks.n_test} test rows also in the training rows")
    review = f"smallfirst review {shlex.quote(str(file.folder))} --labels suspects.jsonl"
    training_usd, trained = _training(project, run_folder)
    known = read_run(run_folder)
    return ReportData(
        **known,
        title=f"{file.name}: small model or large?",
        task=file.name,
        part=task.part,
        request_noun=task.request_noun,
        evaluations=tuple(run_folder.evaluations("test")),
        calibration_evaluations=tuple(e for name in before if (e := run_folder.evaluation(name, "calibration"))),
        training_usd=training_usd,
        machine=file.prices.machine,
        requests_per_month=file.requests_per_month,
        review_command=review if task.closed else "",
        leaks=leaks,
        notes=(*_notes(project, run_folder, RunRecord(**known)), *trained),
        made_at=datetime.now(UTC),
        versions=_versions(),
    )


def _training(project: Project, run_folder: RunFolder) -> tuple[float, list[str]]:
    """Return what the fine-tune of the language model cost in USD, and a sentence on it; 0 without one."""
    if not (run_folder.path / "run.json").exists():
        return 0.0, []
    from smallfirst.training.run import Run

    run = Run.load(run_folder.path / "run.json")
    usd = project.file.prices.machine.usd_per_hour * run.seconds / 3600
    return usd, [
        f"Fine-tune: {run.base}, {run.config.method}, {run.n_train:,} rows, {run.validation_curve[-1][0]:g} epochs, "
        f"{run.seconds / 60:.1f} min at {run.tokens_per_s:.0f} tokens/s, {format_usd(usd)}."
    ]


def _notes(project: Project, run_folder: RunFolder, run: RunRecord) -> list[str]:
    rows, large = project.rows, run_folder.evaluation("large", "test")
    chosen = "to choose the epoch, the temperature and the candidate"
    to_fit = f"{len(rows.train)} to train on, {len(rows.selection)} {chosen}"
    if (run_folder.path / FOLDS).is_dir():
        to_fit = f"{len(rows.development)} to train on and, answered out of fold, {chosen}"
    notes = [
        f"Rows: {to_fit}, {len(rows.calibration)} to certify and nothing else, {len(rows.test)} to test, touched once.",
        "The gate looks at three candidates at most on the same test rows, in an order fixed before: the first has "
        "three fifths of its level, the others share one fifth, plans another.",
    ]
    for found in (*rows.skipped, *rows.notes):
        notes.append(f"{capitalize_first(found.what)}{': ' if found.where else ''}{'; '.join(found.where)}.")
    if rows.counted.in_words:
        notes.append(f"{rows.counted.in_words}.")
    if run.minutes:
        notes.append(f"Fitted in: {', '.join(f'{name} {took:.1f} min' for name, took in run.minutes.items())}.")
    notes += [f"{capitalize_first(name)} left out: {why}." for name, why in run.left_out.items()]
    return notes + ([f"Large model: {large.note}."] if large and large.note else [])


def _versions() -> dict[str, str]:
    wanted = ("torch", "transformers", "scikit-learn", "mlflow-skinny")
    found = {one.name: one.version for name in wanted for one in distributions(name=name)}
    return {"smallfirst": smallfirst.__version__, "python": platform.python_version(), **found}
