"""The challenge: a run on more training rows whose model goes live only if it beats the champion on the same test rows.

The challenger wins if its accuracy is shown above the champion's at level 1 - 0.05 / (k (k + 1)) in the k-th challenge
of this champion (Tango's paired interval, 1998). The levels of all challenges add up to 0.05, so looking at the same
test rows again and again makes no winner. The champion's alias moves last: a process killed at any moment leaves the
old champion or the new one, complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from smallfirst.base.errors import DataError, StageMissing
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, paired_score_interval
from smallfirst.base.stats.sequential import spent_level
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.verdict import Verdict, format_verdict
from smallfirst.path import run as pipeline
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import with_canonical_answers, with_harvested
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.release import gate_line, may_go_alone
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

    run: str
    champion: int
    """Version of the champion."""
    candidate: str
    verdict: Verdict
    version: int | None = None
    """The challenger's version; None if it may not go live."""
    difference: Estimate | None = None
    """Accuracy of the challenger minus that of the champion, in [-1, 1]; None if it may not go live."""
    won: bool = False
    """True if it became champion."""
    why: str

    @property
    def in_words(self) -> list[str]:
        live = f"version {self.version} is champion" if self.won else f"version {self.champion} stays champion"
        return [f"{live}: {self.why}"]


class _Champion(NamedTuple):
    version: ModelVersion
    test: Evaluation


def challenge(project: Project, rows: Path) -> ChallengeResult:
    """Run the path on the project's rows and those of `rows`, and promote its model if it beats the champion.

    One that may go live and does not win is registered with the alias `challenger`. Raise StageMissing if there is no
    champion, or it was not measured on the current test rows; DataError for bad or held-out rows, or if no row is new.
    """
    champion, grown = _champion(project), _grown(project, rows)
    run_folder = pipeline.train_stage(grown)
    pipeline.evaluate_stage(grown, run_folder)
    verdicts = pipeline.gate_stage(grown, run_folder)
    verdict = verdicts.of(pipeline.chosen_candidate(grown, verdicts))
    may_go = may_go_alone(grown, verdict)
    if not may_go:
        pipeline.small_first_stage(grown, run_folder)
        if (plan := run_folder.verdicts().confirmed) is not None:
            may_go, verdict = True, plan
    missing = f"write  {gate_line(grown)}  into task.yaml" if verdict.passed else format_verdict(verdict)
    made = ChallengeResult(
        run=run_folder.path.name,
        champion=champion.version.version,
        candidate=verdict.candidate,
        verdict=verdict,
        why=f"{verdict.candidate} may not go live: {missing}",
    )
    if may_go:
        made = _contested(grown, run_folder, champion, made)
    project.progress.log(made.in_words[0])
    made.save(run_folder.path / RESULT)
    pipeline.report_stage(grown, run_folder)
    return made


def _contested(grown: Project, run_folder: RunFolder, champion: _Champion, made: ChallengeResult) -> ChallengeResult:
    """Compare the challenger with the champion; promote it as any other version if it wins, else register it."""
    test = run_folder.evaluation(made.candidate, "test")
    assert test is not None  # the gate has looked at it
    look = _look(champion.version, made.run)
    won, found = beats(test, champion.test, look)
    shown = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] n={found.n}, challenge {look} of this champion"
    why = f"{'' if won else 'not shown '}more accurate than the champion: {shown}"
    promoted = pipeline.promote_stage(grown, run_folder) if won else None
    if promoted is not None:
        return made.model_copy(update={"version": promoted.version, "difference": found, "won": True, "why": why})
    if won:
        why += "; but routing.guarantee is not shown, and nothing may be answered without it"
    version = versions.register(
        run_folder.model_folder(made.candidate),
        made.verdict,
        name=grown.file.register_to,
        run_id=run_folder.mlflow_run_id(),
        tags={"task": grown.file.name, "run": made.run, "challenged": str(made.champion)},
    )
    with store_errors():
        client().set_registered_model_alias(version.name, CHALLENGER, str(version.version))
    return made.model_copy(update={"version": version.version, "difference": found, "why": why})


def beats(challenger: Evaluation, champion: Evaluation, look: int) -> tuple[bool, Estimate]:
    """Return whether the challenger is shown more accurate on the rows that both answered, and the difference."""
    ours, theirs = challenger.by_key, champion.by_key
    both = ours.keys() & theirs.keys()
    only_ours = sum(ours[key].correct and not theirs[key].correct for key in both)
    only_theirs = sum(theirs[key].correct and not ours[key].correct for key in both)
    level = 1 - spent_level(0.05, look)
    found = paired_score_interval(only_ours, only_theirs, len(both), confidence=level)
    return found.n > 0 and found.low > 0, found


def _grown(project: Project, rows: Path) -> Project:
    grown = with_harvested(project.rows, rows, columns=project.file.data.columns, labels=project.task.closed)
    n_new = len(grown.train) - len(project.rows.train)
    if not n_new:
        raise DataError(
            f"{rows}: all its rows are training rows already",
            hint="harvest into a file that task.yaml does not name yet: smallfirst harvest task.yaml --out more.jsonl",
        )
    project.progress.log(f"{n_new:,} new rows")
    return project._replace(rows=with_canonical_answers(grown, project.task))


def _champion(project: Project) -> _Champion:
    version = versions.resolve(f"{project.file.register_to}@{versions.CHAMPION}")
    run, candidate = version.tags.get("run"), version.tags.get("candidate", "")
    if run is None:
        raise StageMissing(
            f"{version.name} version {version.version} does not say which run it comes from",
            hint="smallfirst run task.yaml   makes a champion that can be challenged",
        )
    test = RunFolder.latest(project.file.name, run).evaluation(candidate, "test")
    if test is None or test.dataset_fingerprint != project.rows.test.content_fingerprint:
        raise StageMissing(
            f"the champion, {version.name} version {version.version}, was not measured on the current test rows",
            hint=f"smallfirst evaluate task.yaml --run {run}",
        )
    return _Champion(version, test)


def _look(champion: ModelVersion, run: str) -> int:
    """Return the number of this challenge of the champion; it is saved before anything is compared."""
    raw = versions.read_attachment(champion.name, champion.version, COMPARISON_LOG)
    runs = [*(json.loads(raw) if raw else ()), run]
    versions.attach(champion.name, champion.version, COMPARISON_LOG, json.dumps(runs).encode())
    return len(runs)
