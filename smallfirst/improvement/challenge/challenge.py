"""The challenge: retrain with harvested rows; the challenger goes live only if it beats the champion on test rows.

The champion's alias moves last: a process killed at any moment leaves the old champion or the new one, complete.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from smallfirst.errors import DataError, StageMissing
from smallfirst.evaluation.evaluate import Evaluation
from smallfirst.gate.verdict import Verdict, format_verdict
from smallfirst.improvement.challenge.comparison import ChampionComparison, compare_to_champion
from smallfirst.pipeline import run as pipeline
from smallfirst.pipeline.parity import parity_stage
from smallfirst.pipeline.plans.outcome import answers_live, gate_line, may_go_alone
from smallfirst.project.project import Project
from smallfirst.project.rows import with_canonical_answers, with_harvested
from smallfirst.project.run_folder import PROMOTED, Promotion, RunFolder
from smallfirst.records import Record
from smallfirst.registry import versions
from smallfirst.registry.runs import client, store_errors
from smallfirst.registry.versions import ModelVersion
from smallfirst.routing.policies import CHALLENGER

COMPARISON_LOG = "challenges.json"
"""File attached to a champion's version: the runs that were compared with it."""
RESULT = "challenge.json"
"""File of the result in the challenger's run folder."""


class ChallengeResult(Record):
    """The record of one challenge."""

    task: str
    run: str
    at: str
    n_new: int
    """Rows that the champion was not trained on."""
    champion: int
    champion_candidate: str
    candidate: str
    verdict: Verdict
    version: int | None = None
    """The challenger's version; None if it may not go live."""
    contest: ChampionComparison | None = None
    """The comparison; None if it may not go live."""
    won: bool
    """True if it became champion."""
    why: str

    @property
    def in_words(self) -> list[str]:
        lines = []
        if self.contest is not None:
            c, them = self.contest, f"{self.champion_candidate} (version {self.champion})"
            lines.append(
                f"{self.candidate} (version {self.version}) against {them}: only the challenger right "
                f"{c.only_challenger}, only the champion {c.only_champion}, McNemar p={c.p_value:.3g}"
            )
        now = f"version {self.version} is champion" if self.won else f"version {self.champion} stays champion"
        return [*lines, f"{now}: {self.why}"]


class ComparisonLog(Record):
    """Runs that were compared with a champion on its test rows, in order."""

    runs: tuple[str, ...] = ()


class _Champion(NamedTuple):
    version: ModelVersion
    run_folder: RunFolder
    candidate: str
    test: Evaluation


def challenge(project: Project, rows: Path, *, resume: bool = False) -> ChallengeResult:
    """Train on the project's rows and those of `rows`, compare with the champion, and return the record.

    `resume` continues a challenge that was interrupted. Raise StageMissing if there is no champion, or it was not
    measured on the current test rows; DataError for bad or held-out rows, or if no row is new.
    """
    champion, grown = _champion(project), _grown(project, rows)
    n_new = len(grown.rows.train) - len(project.rows.train)
    project.progress.log(f"{n_new:,} new rows for version {champion.version.version}")
    run_folder = _trained(grown, resume=resume)
    pipeline.evaluate_stage(grown, run_folder)
    verdicts = pipeline.gate_stage(grown, run_folder)
    candidate = pipeline.chosen_candidate(project, verdicts)
    verdict, why = verdicts.of(candidate), f"{candidate} did not pass the gate"
    may = may_go_alone(grown, verdict)
    if not may:
        if verdict.passed:
            why = f"{candidate} meets the default gate, which lets nobody answer alone: write  {gate_line(grown)}"
            why += "  into task.yaml, if that is good enough"
        pipeline.small_first_stage(grown, run_folder)
        if (plan := run_folder.verdicts().confirmed) is not None:
            may, candidate, verdict = True, plan.candidate, plan
    made = ChallengeResult(
        task=project.file.name,
        run=run_folder.path.name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        n_new=n_new,
        champion=champion.version.version,
        champion_candidate=champion.candidate,
        candidate=candidate,
        verdict=verdict,
        won=False,
        why=why,
    )
    if may:
        made = _contested(grown, run_folder, champion, made)
    else:
        project.progress.log(format_verdict(made.verdict))
    made.save(run_folder.path / RESULT)
    pipeline.report_stage(grown, run_folder)
    return made


def _grown(project: Project, rows: Path) -> Project:
    grown = with_harvested(project.rows, rows, columns=project.file.data.columns, labels=project.task.closed)
    if len(grown.train) == len(project.rows.train):
        raise DataError(
            f"{rows}: all its rows are training rows already",
            hint="harvest into a file that task.yaml does not name yet: smallfirst harvest task.yaml --out more.jsonl",
        )
    return project._replace(rows=with_canonical_answers(grown, project.task))


def _champion(project: Project) -> _Champion:
    version = versions.resolve(f"{project.file.register_to}@{versions.CHAMPION}")
    run, candidate = version.tags.get("run"), version.tags.get("candidate", "")
    if run is None:
        raise StageMissing(
            f"{version.name} version {version.version} does not say which run it comes from",
            hint="smallfirst run task.yaml   makes a champion that can be challenged",
        )
    run_folder = RunFolder.latest(project.file.name, run)
    test = run_folder.evaluation(candidate, "test")
    if test is None or test.dataset_fingerprint != project.rows.test.content_fingerprint:
        raise StageMissing(
            f"the champion, {version.name} version {version.version}, was not measured on the current test rows",
            hint=f"smallfirst evaluate task.yaml --run {run}",
        )
    return _Champion(version, run_folder, candidate, test)


def _trained(grown: Project, *, resume: bool) -> RunFolder:
    """Train on the extended rows; with `resume`, return the latest run that has no result yet."""
    if not resume or RunFolder.unfinished(grown.file.name) is not None:
        return pipeline.train_stage(grown, resume=resume)
    run_folder = RunFolder.latest(grown.file.name)
    fitted = run_folder.fitted()
    rows = fitted.dataset_fingerprint if fitted else ""
    if rows != grown.rows.train.content_fingerprint or (run_folder.path / RESULT).exists():
        raise StageMissing(f"{grown.file.name} has no interrupted challenge to resume", hint="leave out --resume")
    return run_folder


def _contested(grown: Project, run_folder: RunFolder, champion: _Champion, made: ChallengeResult) -> ChallengeResult:
    version = _registered(grown, run_folder, made)
    parity_stage(grown, run_folder, version, made.candidate)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    trial = Promotion(
        name=version.name, version=version.version, candidate=made.candidate, at=at, plan=made.verdict.plan
    )
    pipeline.calibrate_stage(grown, run_folder, trial)
    test = run_folder.evaluation(made.candidate, "test")
    assert test is not None  # the gate has looked at it
    ours, theirs = run_folder.evaluation("routed", "test"), champion.run_folder.evaluation("routed", "test")
    found = compare_to_champion(
        test, champion.test, routed=(ours, theirs) if ours and theirs else None, look=_look(champion, run_folder)
    )
    bound = found.won and not answers_live(grown, run_folder)
    won, why = found.won and not bound, found.why
    if bound:
        why = f"{why}; but routing.guarantee binds single answers, and it is not shown: nothing of it may be answered"
    if won:
        trial.save(run_folder.path / PROMOTED)
        versions.promote(version.name, version.version)
        pipeline.decide_outcome(grown, run_folder)
        with store_errors():
            client().delete_registered_model_alias(version.name, CHALLENGER)
    result = made.model_copy(update={"version": version.version, "contest": found, "won": won, "why": why})
    for line in result.in_words:
        grown.progress.log(line)
    return result


def _registered(grown: Project, run_folder: RunFolder, made: ChallengeResult) -> ModelVersion:
    version = versions.register(
        run_folder.model_folder(made.candidate),
        made.verdict,
        name=grown.file.register_to,
        run_id=run_folder.mlflow_run_id(),
        tags={"task": made.task, "run": made.run, "challenged": str(made.champion)},
    )
    with store_errors():
        client().set_registered_model_alias(version.name, CHALLENGER, str(version.version))
    return version


def _look(champion: _Champion, run_folder: RunFolder) -> int:
    """Return the number of this challenge of the champion; it is saved before anything is compared."""
    name, version, run = champion.version.name, champion.version.version, run_folder.path.name
    raw = versions.read_attachment(name, version, COMPARISON_LOG)
    runs = ComparisonLog.model_validate_json(raw).runs if raw else ()
    if run not in runs:
        runs = (*runs, run)
        versions.attach(name, version, COMPARISON_LOG, ComparisonLog(runs=runs).model_dump_json(indent=2).encode())
    return runs.index(run) + 1
