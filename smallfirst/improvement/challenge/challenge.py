"""The challenge: retrain with harvested rows; the challenger goes live only if it beats the champion on test rows.

The champion's alias moves last: a process killed at any moment leaves the old champion or the new one, complete.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from smallfirst.data.sources.text_files import file_format
from smallfirst.errors import DataError, StageMissing
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.verdict import Verdict, format_verdict
from smallfirst.improvement.challenge.comparison import ChampionComparison, compare_to_champion
from smallfirst.improvement.harvest.harvest import SOURCES
from smallfirst.pipeline import run as pipeline
from smallfirst.pipeline.parity import parity_stage
from smallfirst.project.project import Project
from smallfirst.project.rows import with_canonical_answers, with_harvested
from smallfirst.project.run_folder import PROMOTED, Promotion, RunFolder
from smallfirst.records import Record
from smallfirst.registry import versions
from smallfirst.registry.runs import client, store_errors
from smallfirst.registry.versions import ModelVersion
from smallfirst.routing.policies.policy import CHALLENGER
from smallfirst.serving.ledger.ledger import open_existing
from smallfirst.serving.ledger.rows import LedgerRow, StateRow
from smallfirst.stats.intervals import Estimate, wilson

COMPARISON_LOG = "challenges.json"
"""File attached to a champion's version: the runs that were compared with it."""
RESULT = "challenge.json"
"""File of the result in the challenger's run folder."""


RECENT_ANSWERS = 1000
"""Latest answers whose escalated share is shown."""


class Proposal(Record):
    """The reason for a retrain."""

    champion: int
    since: datetime
    """When it was registered; later events count."""
    n_new: int
    """Rows that the champion was not trained on."""
    by_source: dict[str, int] = {}
    """Rows by source of their answer, where the file names it."""
    changes: tuple[str, ...] = ()
    """Changes of the task's state since then, oldest first."""
    n_alarms: int = 0
    """Number of these changes to drift or fallback."""
    sent_on: Estimate | None = None
    """Share of the latest answers given by the large model or a person; None without answers since then."""
    sent_on_in_test: float | None = None
    """That share on test rows when the champion went live; None if it was not measured."""

    @property
    def in_words(self) -> list[str]:
        sources = ", ".join(f"{n:,} {SOURCES.get(name, name)}" for name, n in self.by_source.items())  # type: ignore[call-overload]
        lines = [
            f"{self.n_new:,} new rows for version {self.champion}" + (f" (in the file: {sources})" if sources else "")
        ]
        alarms = f", {self.n_alarms} of them alarms" if self.changes else ""
        lines.append(f"{len(self.changes)} changes of state since {self.since:%Y-%m-%d}{alarms}")
        lines += [f"  {change}" for change in self.changes[-5:]]
        if self.sent_on is not None:
            then = "" if self.sent_on_in_test is None else f"; on test rows it was {self.sent_on_in_test:.3f}"
            lines.append(f"of the last {self.sent_on.n:,} answers {self.sent_on} were not the small model's{then}")
        return lines


class ChallengeResult(Record):
    """The record of one challenge."""

    task: str
    run: str
    at: str
    proposal: Proposal
    champion: int
    champion_candidate: str
    candidate: str
    verdict: Verdict
    version: int | None = None
    """The challenger's version; None if it failed the gate."""
    contest: ChampionComparison | None = None
    """The comparison; None if it failed the gate."""
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


def proposal_of(project: Project, rows: Path) -> Proposal:
    """Return the reason for a challenge with these rows; train nothing. Raise what `challenge` raises."""
    return _proposed(project, _grown(project, rows), _champion(project), rows)


def challenge(project: Project, rows: Path, *, resume: bool = False) -> ChallengeResult:
    """Train on the project's rows and those of `rows`, compare with the champion, and return the record.

    `resume` continues a challenge that was interrupted. Raise StageMissing if there is no champion, or it was not
    measured on the current test rows; DataError for bad or held-out rows, or if no row is new.
    """
    champion, grown = _champion(project), _grown(project, rows)
    proposal = _proposed(project, grown, champion, rows)
    for line in proposal.in_words:
        project.progress.log(line)
    run_folder = _trained(grown, resume=resume)
    pipeline.evaluate_stage(project, run_folder)
    verdicts = pipeline.gate_stage(grown, run_folder)
    candidate = pipeline.chosen_candidate(project, verdicts)
    verdict = verdicts.of(candidate)
    if not verdict.passed:
        plan = pipeline.small_first_stage(grown, run_folder).passed
        candidate, verdict = (plan.candidate, plan.verdict) if plan else (candidate, verdict)
    made = ChallengeResult(
        task=project.file.name,
        run=run_folder.path.name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        proposal=proposal,
        champion=champion.version.version,
        champion_candidate=champion.candidate,
        candidate=candidate,
        verdict=verdict,
        won=False,
        why=f"{candidate} did not pass the gate",
    )
    if made.verdict.passed:
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


def _proposed(project: Project, grown: Project, champion: _Champion, rows: Path) -> Proposal:
    routed = champion.run_folder.evaluation("routed", "test")
    return propose(
        project.file.name,
        (champion.version.version, champion.version.created_at),
        (rows, len(grown.rows.train) - len(project.rows.train)),
        sent_on_in_test=routed.share("large") + routed.share("person") if routed else None,
    )


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
    if found.won:
        trial.save(run_folder.path / PROMOTED)
        versions.promote(version.name, version.version)
        pipeline.decide_outcome(grown, run_folder)
        with store_errors():
            client().delete_registered_model_alias(version.name, CHALLENGER)
    result = made.model_copy(update={"version": version.version, "contest": found, "won": found.won, "why": found.why})
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


def propose(
    task: str,
    champion: tuple[int, datetime],
    rows: tuple[Path, int],
    *,
    sent_on_in_test: float | None = None,
) -> Proposal:
    """Return the reason to retrain a champion, given by version and time of registration.

    `rows` are the file and how many of its rows are new.
    """
    version, since = champion
    made = Proposal(
        champion=version, since=since, n_new=rows[1], by_source=_sources(rows[0]), sent_on_in_test=sent_on_in_test
    )
    if (found := open_existing()) is None:
        return made
    with closing(found) as opened:
        states = [s for s in opened.entries(StateRow, task=task, since=since) if s.before]
        answers = opened.entries(LedgerRow, task=task, since=since, limit=RECENT_ANSWERS)
    stages = [row.stage for row in answers if row.status == 200]
    away = sum(stage in ("large", "person") for stage in stages)
    return made.model_copy(
        update={
            "changes": tuple(f"{s.at:%Y-%m-%d %H:%M}  {s.before} -> {s.after}: {s.why}" for s in states),
            "n_alarms": sum(s.after in ("drift", "fallback") for s in states),
            "sent_on": wilson(away, len(stages)) if stages else None,
        }
    )


def _sources(path: Path) -> dict[str, int]:
    if file_format(path) not in (".jsonl", ".ndjson", ".json") or path.suffix == ".gz":
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    return dict(Counter(str(row["source"]) for row in rows if row.get("source")).most_common())
