"""The challenge: a run whose model goes live only if it beats the champion on the same test rows.

The challenger wins if its accuracy is shown above the champion's at level 1 - 0.05 / (k (k + 1)) in the k-th challenge
of this champion (Tango's paired interval, 1998). The levels of all challenges add up to 0.05, so looking at the same
test rows again and again makes no winner. The champion's alias moves last: a process killed at any moment leaves the
old champion or the new one, complete.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from smallfirst.base.errors import StageMissing
from smallfirst.base.stats.intervals import Estimate, paired_score_interval
from smallfirst.base.stats.sequential import spent_level
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.verdict import Verdict
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.registry import versions
from smallfirst.registry.runs import client, store_errors
from smallfirst.registry.versions import ModelVersion
from smallfirst.routing.policies import CHALLENGER

COMPARISON_LOG = "challenges.json"
"""File attached to a champion's version: the runs that were compared with it."""


class Champion(NamedTuple):
    """The version to beat, as its run measured it."""

    version: ModelVersion
    test: Evaluation


def champion_of(project: Project) -> Champion:
    """Return the champion. Raise StageMissing if it was not measured on the current test rows; RegistryError: none."""
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
    return Champion(version, test)


def contest(project: Project, run_folder: RunFolder, champion: Champion, verdict: Verdict) -> str:
    """Return why the champion stays, its challenger registered with the alias `challenger`; empty if it was beaten."""
    test, run = run_folder.evaluation(verdict.candidate, "test"), run_folder.path.name
    assert test is not None  # the gate has looked at it
    look = _look(champion.version, run)
    won, found = beats(test, champion.test, look)
    shown = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] n={found.n}, challenge {look} of this champion"
    if won:
        project.progress.log(f"more accurate than the champion: {shown}")
        return ""
    version = versions.register(
        run_folder.model_folder(verdict.candidate),
        verdict,
        name=project.file.register_to,
        run_id=run_folder.mlflow_run_id(),
        tags={"task": project.file.name, "run": run, "challenged": str(champion.version.version)},
    )
    with store_errors():
        client().set_registered_model_alias(version.name, CHALLENGER, str(version.version))
    stays = f"version {champion.version.version} stays champion, and version {version.version} is challenger"
    return f"{stays}: not shown more accurate than the champion: {shown}"


def beats(challenger: Evaluation, champion: Evaluation, look: int) -> tuple[bool, Estimate]:
    """Return whether the challenger is shown more accurate on the rows that both answered, and the difference."""
    ours, theirs = challenger.by_key, champion.by_key
    both = ours.keys() & theirs.keys()
    only_ours = sum(ours[key].correct and not theirs[key].correct for key in both)
    only_theirs = sum(theirs[key].correct and not ours[key].correct for key in both)
    level = 1 - spent_level(0.05, look)
    found = paired_score_interval(only_ours, only_theirs, len(both), confidence=level)
    return found.n > 0 and found.low > 0, found


def _look(champion: ModelVersion, run: str) -> int:
    """Return the number of this challenge of the champion; it is saved before anything is compared."""
    raw = versions.read_attachment(champion.name, champion.version, COMPARISON_LOG)
    runs = [*(json.loads(raw) if raw else ()), run]
    versions.attach(champion.name, champion.version, COMPARISON_LOG, json.dumps(runs).encode())
    return len(runs)
