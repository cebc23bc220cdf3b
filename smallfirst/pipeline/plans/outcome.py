"""The outcome of a run, from what its stages left: what goes live with which proof, or which rows would decide it."""

from __future__ import annotations

import math

import yaml

from smallfirst.gate.gate import share_of_bill, stays_small
from smallfirst.gate.outcome import AuditedAccuracy, Outcome
from smallfirst.gate.verdict import Verdict, nearest_to_passing
from smallfirst.pipeline.calibrate import CERTIFIED, Certified
from smallfirst.pipeline.plans.labels_needed import PROMISE, labels_needed
from smallfirst.pipeline.plans.worth import price_of_guarantee
from smallfirst.pipeline.summary import KEPT, KeptOnTest
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import OUTCOME, PROMOTED, Promotion, RunFolder
from smallfirst.project.task_file import RULES
from smallfirst.registry import runs, versions
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import wilson


def decide_outcome(project: Project, run_folder: RunFolder, *, shadow: Promotion | None = None) -> Outcome:
    """Return the outcome of a run that was gated; save it in the run, with the version, and in MLflow.

    A later stage replaces it. `shadow` is a version that was registered and is not live.
    """
    certified, goes_live = _certified(project, run_folder), answers_live(project, run_folder)
    found = (
        _live(project, run_folder, certified) if certified and goes_live else _not_live(project, run_folder, certified)
    )
    registered = run_folder.find(Promotion, PROMOTED) if goes_live else shadow
    if registered is not None:
        alias = versions.CHAMPION if goes_live else versions.SHADOW
        found = found.model_copy(update={"model": registered.name, "version": registered.version, "alias": alias})
        raw = found.model_dump_json(indent=2).encode()
        versions.attach(registered.name, registered.version, OUTCOME, raw)
        versions.tag(registered.name, registered.version, found.facts)
    found.save(run_folder.path / OUTCOME)
    run = runs.TrackedRun(runs.client(), run_folder.mlflow_run_id())
    run.set_tags(found.facts)
    run.log_metrics(0, {f"outcome/{name}": share.value for name, share in found.shares.items()})
    run.flush()
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


def may_go_alone(project: Project, verdict: Verdict) -> bool:
    """Return True if a candidate may answer every request: it passed a gate that task.yaml sets, or somebody signed."""
    return verdict.passed and (project.file.sets_gate or bool(verdict.signed_by))


def _certified(project: Project, run_folder: RunFolder) -> Certified | None:
    """Return what was certified last, if a gate, a signature or a confirmed plan lets it go live; else None."""
    found, live = run_folder.find(Certified, CERTIFIED), run_folder.find(Promotion, PROMOTED)
    if found is None:
        return None
    if live is not None:
        return found.model_copy(update={"candidate": live.candidate, "plan": live.plan})
    verdicts = run_folder.verdicts()
    if found.plan == "small alone":
        return found if may_go_alone(project, verdicts.of(found.candidate)) else None
    return found if verdicts.confirmed and verdicts.confirmed.candidate == found.candidate else None


def _live(project: Project, run_folder: RunFolder, certified: Certified) -> Outcome:
    """Return who answers what, with which proof."""
    routed, large = run_folder.evaluation("routed", "test"), run_folder.evaluation("large", "test")
    assert routed is not None
    certificate, verdict = certified.certificate, run_folder.verdicts().of(certified.candidate)
    stages, small = {row.stage for row in routed.rows}, stays_small(routed)
    rest = "large" if stages & {"large", "general"} else "person" if "person" in stages else ""
    plan = "small first" if certified.plan == "small first" or rest else "small alone"
    rest = rest or ("refused" if "out_of_scope" in stages else "")
    kept = run_folder.find(KeptOnTest, KEPT) if certificate.issued else None
    promised = wilson(kept.n_kept, kept.n_rows) if kept else None
    all_promised = all(row.certified for row, ours in zip(routed.rows, small, strict=True) if ours)
    bill = share_of_bill(routed, large) if large else None
    answered = [row.correct for row in routed.rows if row.stage != "person"]
    measured = run_folder.evaluation(certified.candidate, "test")
    by_gate = holds_to_gate(project, certified, verdict, all_small=plan == "small alone")
    audited = AuditedAccuracy.of(project.file.gate, measured, large) if measured is not None and by_gate else None
    return Outcome(
        kind=plan,
        candidate=certified.candidate,
        title=get_candidate(certified.candidate).title,
        instead=price_of_guarantee(project, run_folder, routed) if rest == "large" else "",
        gate="signed" if verdict.signed_by else "passed" if verdict.passed else "failed",
        share_small=promised if promised and all_promised else wilson(sum(small), len(small)),
        share_promised=promised,
        promise=certificate.guarantee.in_words if certificate.issued else "",
        accuracy=wilson(sum(answered), len(answered)) if answered else None,
        share_of_bill=bill if bill and math.isfinite(bill.high) else None,
        large=project.file.large is not None,
        rest=rest or ("large" if plan == "small first" and project.file.large else ""),
        watched_by=_judge(project, certificate, audited),
        audited=audited,
        signed=f"{verdict.signed_by} ({verdict.because})" if verdict.signed_by else "",
        why="" if certificate.issued else certificate.why,
        labels_needed=labels_needed(project, run_folder, live=True),
    )


def holds_to_gate(project: Project, certified: Certified, verdict: Verdict, *, all_small: bool) -> bool:
    """Return True if audits hold small answers to the gate's accuracy: the candidate passed one that somebody wrote.

    `all_small`: it answers every request of the task. Where it does not, a certificate decides what it answers, and is
    what audits watch; without one, the domain check alone sends some on.
    """
    passed = certified.plan == "small alone" and verdict.passed and not verdict.signed_by and project.file.sets_gate
    return passed and (all_small or not certified.certificate.issued)


def _judge(project: Project, certificate: Certificate, audited: AuditedAccuracy | None) -> str:
    """Return who judges audits; nobody where none could find a limit broken."""
    routing, limits = project.file.routing, audited.limits if audited else {}
    if project.file.large is not None and routing.judge == "large" and (certificate.issued or "large" in limits):
        return "large"
    asked = routing.person or routing.judge == "person"
    return "person" if asked and (certificate.issued or limits) else ""


def _not_live(project: Project, run_folder: RunFolder, certified: Certified | None) -> Outcome:
    """Return the rows that would decide it, else what fails; and the line of a gate that only has to be written."""
    needed, verdicts = labels_needed(project, run_folder), run_folder.verdicts()
    found = Outcome(
        kind="keep the large model" if needed is None else "cannot be told yet",
        labels_needed=needed,
        large=project.file.large is not None,
        why=_why_not(project, run_folder),
    )
    met = verdicts.winner if project.file.goes_live in RULES else project.file.goes_live
    if met is None or not verdicts.of(met).passed:
        return found
    found = found.model_copy(update={"title": get_candidate(met).title, "gate": "passed"})
    if may_go_alone(project, verdicts.of(met)):
        return found
    measured = run_folder.evaluation(met, "test")
    missing = {"gate": "not written", "gate_line": gate_line(project), "accuracy": measured and measured.accuracy}
    return found.model_copy(update=missing)


def _why_not(project: Project, run_folder: RunFolder) -> str:
    if (certified := _certified(project, run_folder)) is not None:
        return f"what is right cannot be told from what is wrong well enough: {certified.certificate.why}"
    verdicts = run_folder.verdicts()
    nearest = verdicts.trials[0] if verdicts.trials else nearest_to_passing(verdicts.verdicts)
    check, title = nearest.furthest_off, get_candidate(nearest.candidate).title
    if check is None:
        return ""
    if not verdicts.trials:
        return f"“{title}” comes nearest and misses “{check.requirement}” ({check.measured})"
    why = f"no candidate may go live alone, and “{title}” first misses “{check.requirement}”"
    return why if check.name == PROMISE else f"{why} ({check.measured})"
