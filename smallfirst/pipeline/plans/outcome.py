"""The outcome of a run, from what its stages left: what goes live with which proof, or which rows would decide it."""

from __future__ import annotations

import math
from typing import Any, Literal

import yaml

from smallfirst.gate.audited import AuditedAccuracy, audited_accuracy
from smallfirst.gate.limits import saving, stays_small
from smallfirst.gate.outcome import Outcome
from smallfirst.gate.verdict import Verdict, nearest_to_passing
from smallfirst.pipeline.calibrate import CERTIFIED, Certified
from smallfirst.pipeline.plans.labels_needed import PROMISE, labels_needed
from smallfirst.pipeline.plans.small_first import PlanTrials
from smallfirst.pipeline.plans.worth import price_of_guarantee
from smallfirst.pipeline.summary import KEPT, KeptOnTest
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import OUTCOME, PROMOTED, Promotion, RunFolder
from smallfirst.project.task_file import RULES
from smallfirst.registry import runs, versions
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import Estimate, wilson

_RESTS = (("large", ("large", "general")), ("person", ("person",)), ("refused", ("out_of_scope",)))
"""Who gets the rest by the stages of the routed rows, the first that applies."""


def decide_outcome(project: Project, run_folder: RunFolder, *, shadow: Promotion | None = None) -> Outcome:
    """Return the outcome of a run that was gated; save it in the run, with the version, and in MLflow.

    A later stage replaces it. `shadow` is a version that was registered and is not live.
    """
    goes_live = answers_live(project, run_folder)
    values = _live(project, run_folder) if goes_live else _not_live(project, run_folder)
    registered = run_folder.find(Promotion, PROMOTED) if goes_live else shadow
    if registered is not None:
        alias = versions.CHAMPION if goes_live else versions.SHADOW
        values |= {"model": registered.name, "version": registered.version, "alias": alias}
    trials = PlanTrials.of(run_folder).trials
    found = Outcome(**values, trials=trials, large=project.file.large is not None)
    found.save(run_folder.path / OUTCOME)
    tell_registry(run_folder, found)
    return found


def answers_live(project: Project, run_folder: RunFolder) -> bool:
    """Return True if something of the certified candidate may be answered: with a certificate, or alone.

    Without a certificate a guarantee that task.yaml sets leaves nothing, where a large model can answer instead.
    """
    certified = _certified(project, run_folder)
    if certified is None:
        return False
    alone = certified.plan == "small alone" and not project.file.binds_answers
    return certified.certificate.issued or alone


def gate_line(project: Project) -> str:
    """Return the line of task.yaml that makes the default gate the user's own."""
    given = {name: value for name, value in project.file.gate if value not in (None, {}) and name.endswith("_at_least")}
    return f"gate: {yaml.safe_dump(given, default_flow_style=True).strip()}"


def tell_registry(run_folder: RunFolder, outcome: Outcome) -> None:
    """Write the outcome to the run in MLflow, as tags and metrics, and beside its version in the registry."""
    run = runs.TrackedRun(runs.client(), run_folder.mlflow_run_id())
    run.set_tags(outcome.facts)
    run.log_metrics(0, {f"outcome/{name}": share.value for name, share in outcome.shares.items()})
    run.flush()
    if outcome.version is not None:
        versions.attach(outcome.model, outcome.version, OUTCOME, outcome.model_dump_json(indent=2).encode())
        versions.tag(outcome.model, outcome.version, outcome.facts)


def _certified(project: Project, run_folder: RunFolder) -> Certified | None:
    """Return what was certified last, if a gate, a signature or a confirmed plan lets it go live; else None."""
    found, live = run_folder.find(Certified, CERTIFIED), run_folder.find(Promotion, PROMOTED)
    if found is None:
        return None
    if live is not None:
        return found.model_copy(update={"candidate": live.candidate, "plan": live.plan})
    if found.plan == "small first":
        plan = PlanTrials.of(run_folder).passed
        return found if plan is not None and plan.candidate == found.candidate else None
    verdict = run_folder.verdicts().of(found.candidate)
    return found if verdict.passed and (project.file.sets_gate or verdict.signed_by) else None


def _live(project: Project, run_folder: RunFolder) -> dict[str, Any]:
    """Return who answers what, with which proof."""
    certified = _certified(project, run_folder)
    routed, large = run_folder.evaluation("routed", "test"), run_folder.evaluation("large", "test")
    assert certified is not None
    assert routed is not None
    certificate, verdict = certified.certificate, run_folder.verdicts().of(certified.candidate)
    stages = {row.stage for row in routed.rows}
    rest = next((who for who, named in _RESTS if stages & set(named)), "")
    plan = "small first" if certified.plan == "small first" or rest in ("large", "person") else "small alone"
    kept, small = run_folder.find(KeptOnTest, KEPT), stays_small(routed)
    promised = wilson(kept.n_kept, kept.n_rows) if kept is not None and certificate.issued else None
    all_promised = all(row.certified for row, ours in zip(routed.rows, small, strict=True) if ours)
    share = promised if promised is not None and all_promised else wilson(sum(small), len(small))
    answered = [row.correct for row in routed.rows if row.stage != "person"]
    bill = None if large is None else saving(routed, large)
    measured = run_folder.evaluation(certified.candidate, "test")
    by_gate = holds_to_gate(project, certified, verdict, all_small=plan == "small alone")
    audited = audited_accuracy(project.file.gate, measured, large) if measured is not None and by_gate else None
    return {
        **_named(certified.candidate),
        "kind": plan,
        "instead": price_of_guarantee(project, run_folder, routed) if rest == "large" else "",
        "gate": "signed" if verdict.signed_by else "passed" if verdict.passed else "failed",
        "share_small": share,
        "share_promised": promised,
        "promise": certificate.guarantee.in_words if certificate.issued else "",
        "accuracy": wilson(sum(answered), len(answered)) if answered else None,
        "share_of_bill": bill and _rest_of(bill),
        "rest": rest or ("large" if plan == "small first" and project.file.large else ""),
        "watched_by": _judge(project, certificate, audited),
        "audited": audited,
        "signed": f"{verdict.signed_by} ({verdict.because})" if verdict.signed_by else "",
        "why": "" if certificate.issued else certificate.why,
        "labels_needed": labels_needed(project, run_folder, live=True),
    }


def holds_to_gate(project: Project, certified: Certified, verdict: Verdict, *, all_small: bool) -> bool:
    """Return True if audits hold small answers to the gate's accuracy: the candidate passed one that somebody wrote.

    `all_small`: it answers every request of the task. Where it does not, a certificate decides what it answers, and is
    what audits watch; without one, the domain check alone sends some on.
    """
    passed = certified.plan == "small alone" and verdict.passed and not verdict.signed_by and project.file.sets_gate
    return passed and (all_small or not certified.certificate.issued)


def _judge(
    project: Project, certificate: Certificate, audited: AuditedAccuracy | None
) -> Literal["", "large", "person"]:
    """Return who judges audits; nobody where none could find a limit broken."""
    routing = project.file.routing
    by_large = certificate.issued or (audited is not None and audited.by_large is not None)
    if project.file.large is not None and routing.judge == "large" and by_large:
        return "large"
    asked = routing.person or routing.judge == "person"
    return "person" if asked and (certificate.issued or audited) else ""


def _rest_of(saved: Estimate) -> Estimate | None:
    """Return the share of the bill that is left; None without an interval."""
    if not math.isfinite(saved.low) or not math.isfinite(saved.high):
        return None
    return Estimate(value=1 - saved.value, low=max(0.0, 1 - saved.high), high=1 - saved.low, n=saved.n)


def _named(candidate: str) -> dict[str, str]:
    found = get_candidate(candidate)
    return {"candidate": candidate, "title": found.title, "headline": found.headline}


def _not_live(project: Project, run_folder: RunFolder) -> dict[str, Any]:
    """Return the rows that would decide it, else what fails; and the line of a gate that only has to be written."""
    needed = labels_needed(project, run_folder, trials=PlanTrials.of(run_folder).trials)
    found: dict[str, Any] = {
        "kind": "keep the large model" if needed is None else "cannot be told yet",
        "labels_needed": needed,
        "why": _why_not(project, run_folder),
    }
    verdicts = run_folder.verdicts()
    met = verdicts.smallest if project.file.goes_live in RULES else project.file.goes_live
    if met is None or not verdicts.of(met).passed:
        return found
    found |= {name: value for name, value in _named(met).items() if name == "title"}
    if project.file.sets_gate or verdicts.of(met).signed_by:
        return found | {"gate": "passed"}
    measured = run_folder.evaluation(met, "test")
    return found | {
        "gate": "not written",
        "gate_line": gate_line(project),
        "accuracy": measured.accuracy if measured else None,
    }


def _why_not(project: Project, run_folder: RunFolder) -> str:
    certified = _certified(project, run_folder)
    if certified is not None:
        return f"what is right cannot be told from what is wrong well enough: {certified.certificate.why}"
    trials = PlanTrials.of(run_folder).trials
    nearest = trials[0] if trials else nearest_to_passing(run_folder.verdicts().verdicts)
    check, title = nearest.furthest_off, get_candidate(nearest.candidate).title
    if check is None:
        return ""
    if not trials:
        return f"“{title}” comes nearest and misses “{check.requirement}” ({check.measured})"
    why = f"no candidate may go live alone, and “{title}” first misses “{check.requirement}”"
    return why if check.name == PROMISE else f"{why} ({check.measured})"
