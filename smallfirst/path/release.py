"""The gate, the plans, what goes live, and the outcome of a run.

A plan is small where a certificate covers it, large elsewhere; it is tried if no candidate passes alone, or if it is
worth more. Plans come by worth, as the rows that choose let expect it. Each is certified on calibration rows, a look of
its own, and then confirmed on test rows by `gate.routed`, at an equal share of what the gate's level holds for plans;
the first that passes goes live.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime

import yaml

from smallfirst.base.errors import ConfigError, GateFailed
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.choice import PLANS, unbeaten
from smallfirst.measuring.evaluate import Evaluation, share_of_bill
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Requirement, run_checks
from smallfirst.measuring.outcome import AuditedAccuracy, Outcome
from smallfirst.measuring.verdict import CheckResult, Verdict, format_verdict, nearest_to_passing, override
from smallfirst.models.pricing import format_usd
from smallfirst.models.stages import Answerer, answerer
from smallfirst.path.calibrate import CERTIFIED, Certified, attach_certified, calibrate_stage, certify_candidate
from smallfirst.path.diagnostics import find_split_leaks, without_copies
from smallfirst.path.evaluate import measure_router
from smallfirst.path.finalists import expected_plans, fix_finalists
from smallfirst.path.foretold import PROMISE, labels_needed
from smallfirst.path.parity import parity_stage
from smallfirst.path.project.candidates import get_candidate
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import (
    CERTIFICATE,
    KEPT,
    OUTCOME,
    PROMOTED,
    VERDICTS,
    GateVerdicts,
    KeptOnTest,
    Promotion,
    RunFolder,
)
from smallfirst.path.project.task_file import RULES
from smallfirst.registry import runs, versions
from smallfirst.routing.certificate.certificate import Certificate


@shown_as("")
def gate_stage(project: Project, run_folder: RunFolder) -> GateVerdicts:
    """Check the finalists on test rows, and choose among those that pass."""
    finalists, file = fix_finalists(project, run_folder), project.file
    leaks, large = find_split_leaks(project, run_folder), run_folder.evaluation("large", "test")
    verdicts = tuple(
        file.gate.check(
            evaluation,
            large=large,
            comparisons_made=1 / finalists.shares[evaluation.candidate],
            leaks=leaks,
            clean=without_copies(project, evaluation, leaks),
            beside=run_folder.evaluation(evaluation.candidate, "calibration") if file.data.one_source else None,
        )
        for evaluation in run_folder.evaluations("test", finalists.names)
    )
    found = _saved(project, run_folder, verdicts)
    passing = ", ".join(verdict.candidate for verdict in verdicts if verdict.passed) or "none"
    project.progress.log(f"gate: passing {passing}")
    return found


@shown_as("")
def override_stage(project: Project, run_folder: RunFolder, candidate: str, *, by: str, because: str) -> GateVerdicts:
    """Let a person sign for `candidate` although it failed the gate.

    Raise ConfigError as `override` does, or where only a gate of the user's own is missing.
    """
    before = run_folder.verdicts()
    if not project.file.sets_gate and any(one.candidate == candidate and one.passed for one in before.verdicts):
        raise ConfigError(
            f"{candidate} meets the default gate, so there is nothing to sign for: task.yaml sets no gate",
            hint=f"write  {gate_line(project)}  into task.yaml, if that is good enough; then  smallfirst promote",
        )
    verdicts = override(before.verdicts, candidate, by=by, because=because)
    project.progress.log(f"gate: {candidate} overridden by {by}: {because}")
    return _saved(project, run_folder, verdicts, before.trials)


def _saved(
    project: Project, run_folder: RunFolder, verdicts: tuple[Verdict, ...], trials: tuple[Verdict, ...] = ()
) -> GateVerdicts:
    """Save the verdicts with the first candidate that passes and is not clearly beaten by another that does."""
    leaks = find_split_leaks(project, run_folder)
    measured = [run_folder.evaluation(one.candidate, "test") for one in verdicts if one.passed]
    live = unbeaten([without_copies(project, one, leaks) for one in measured if one])
    result = GateVerdicts(verdicts=verdicts, winner=next(iter(live), None), trials=trials)
    result.save(run_folder.path / VERDICTS)
    return result


def chosen_candidate(project: Project, verdicts: GateVerdicts) -> str:
    """Return the candidate that is to go live: the one that `routing.small` names, else the one found by the rule.

    If none passes, the one that comes nearest.
    """
    if (wanted := project.file.goes_live) not in RULES:
        return wanted
    return verdicts.winner or nearest_to_passing(verdicts.verdicts).candidate


def may_go_alone(project: Project, verdict: Verdict) -> bool:
    """Return True if a candidate may answer every request: it passed a gate that task.yaml sets, or somebody signed.

    None may where a model can have no answer.
    """
    return (
        not project.file.may_have_no_answer and verdict.passed and (project.file.sets_gate or bool(verdict.signed_by))
    )


def gate_line(project: Project) -> str:
    """Return the line of task.yaml that makes the default gate the user's own."""
    given = {name: value for name, value in project.file.gate if value not in (None, {}) and name.endswith("_at_least")}
    return f"gate: {yaml.safe_dump(given, default_flow_style=True).strip()}"


def plans_stage(project: Project, run_folder: RunFolder, alone: Verdict) -> tuple[Verdict, ...]:
    """Try the plans that are worth more than the candidate of `alone` on every request: all, if it may not go alone."""
    instead_of = alone.candidate if may_go_alone(project, alone) else ""
    if instead_of and not expected_plans(project, run_folder, instead_of=instead_of):
        return ()
    return small_first_stage(project, run_folder, instead_of=instead_of)


@shown_as("looking for a part of the requests that can stay small")
def small_first_stage(project: Project, run_folder: RunFolder, *, instead_of: str = "") -> tuple[Verdict, ...]:
    """Try the plans in order until one passes; save and return the verdicts on those that were tried.

    `instead_of` is a candidate that may answer every request: only plans that are expected to be worth more are tried.
    """
    level = ConfidenceLevel(len(fix_finalists(project, run_folder).names) / PLANS)
    trials: tuple[Verdict, ...] = ()
    first: Certificate | None = None
    for plan in expected_plans(project, run_folder, instead_of=instead_of):
        trials = (*trials, _try(project, run_folder, plan.candidate, level, instead_of))
        first = first or run_folder.certificate()
        run_folder.verdicts().model_copy(update={"trials": trials}).save(run_folder.path / VERDICTS)
        if trials[-1].passed:
            return trials
    if first is not None:  # the one that was expected to keep most, at the whole of the first look's level
        first.save(run_folder.path / CERTIFICATE)
    return trials


def _try(project: Project, run_folder: RunFolder, candidate: str, level: ConfidenceLevel, instead_of: str) -> Verdict:
    """Return the verdict on one plan. The Router is measured if the promise is shown."""
    certified = certify_candidate(project, run_folder, candidate, alone=False)
    checks = [_check_promise(certified.certificate)]
    if certified.certificate.issued:
        asyncio.run(measure_router(project, run_folder, certified.certificate, certified.parts, candidate=candidate))
        routed, large = run_folder.evaluation("routed", "test"), run_folder.evaluation("large", "test")
        assert routed is not None
        routed = without_copies(project, routed, find_split_leaks(project, run_folder))
        checks += run_checks(project.file.gate.routed, CheckInputs(routed, level, large))
        if instead_of and (alone := run_folder.evaluation(instead_of, "test")):
            checks.append(_check_worth(routed, alone, project.file.routing.usd_per_wrong_answer or 0.0))
    verdict = Verdict(
        candidate=candidate,
        plan="small first",
        checks=tuple(checks),
        passed=all(check.passed for check in checks),
        evaluation_fingerprint=run_folder.verdicts().of(candidate).evaluation_fingerprint,
    )
    project.progress.log(format_verdict(verdict))
    return verdict


def _check_promise(certificate: Certificate) -> CheckResult:
    """Return whether the guarantee is shown on calibration rows."""
    limit, words = certificate.guarantee.max_error or 1.0, certificate.guarantee.in_words
    requirement = Requirement(PROMISE, limit, f"a certificate: {words}")
    if not certificate.issued:
        return requirement.result(certificate.report.why)
    kept = f"{certificate.evidence.n_accepted} of {certificate.evidence.n_labels} calibration rows stay small"
    return requirement.result(f"{kept}, {certificate.evidence.n_errors} of them wrong", passed=True)


def _check_worth(routed: Evaluation, alone: Evaluation, usd_per_wrong_answer: float) -> CheckResult:
    """Return whether the plan loses less than a candidate alone on test rows: its certificate may keep less than hoped.

    The candidate passed its gate, so ties are won by it. Without this check plans made it worse where the large model
    is weak, and the printed accuracy covers the truth as often with it.
    """
    losses = [
        1000 * sum(row.cost_usd + usd_per_wrong_answer * (not row.correct) for row in one) / max(1, len(one))
        for one in (routed.rows, [alone.by_key[row.key] for row in routed.rows if row.key in alone.by_key])
    ]
    name, price = get_candidate(alone.candidate).title, format_usd(usd_per_wrong_answer)
    text = f"costs less than “{name}” alone, wrong answers at {price}"
    measured = f"{format_usd(losses[0])} against {format_usd(losses[1])} per 1,000, n={len(routed.rows)}"
    requirement = Requirement("routing.usd_per_wrong_answer", usd_per_wrong_answer, text)
    return requirement.result(measured, passed=losses[0] < losses[1])


@shown_as("registering, and asking the served model")
def promote_stage(project: Project, run_folder: RunFolder, candidate: str | None = None) -> Promotion | None:
    """Register `candidate`, else the chosen one, with its certificate, ask it over HTTP, and make it champion.

    It is certified first, unless it is. Where a plan was confirmed it is that plan's, unless somebody signed for it. A
    version of which nothing may be answered is registered as `shadow`: it drafts beside the large model where there is
    no champion, and None is returned. Raise GateFailed if its verdict did not pass or task.yaml sets no gate, or if the
    server's answers differ from the measured ones.
    """
    verdicts = run_folder.verdicts()
    verdict = verdicts.of(candidate or chosen_candidate(project, verdicts))
    plan = verdicts.confirmed
    if plan is not None and candidate in (None, plan.candidate) and not verdict.signed_by:
        verdict = plan
    elif verdict.passed and not may_go_alone(project, verdict):
        raise GateFailed(
            f"{verdict.candidate} meets the default gate, but task.yaml sets none",
            hint=f"write  {gate_line(project)}  into task.yaml, or: smallfirst calibrate task.yaml",
        )
    found = run_folder.find(Certified, CERTIFIED)
    certified = found and (found.candidate, found.plan) == (verdict.candidate, verdict.plan)
    if verdict.passed and not certified:
        calibrate_stage(project, run_folder, candidate=verdict.candidate)
    promotion = _register(project, run_folder, verdict)
    if not answers_live(project, run_folder):
        decide_outcome(project, run_folder, shadow=promotion)
        return None
    versions.promote(promotion.name, promotion.version)
    promotion.save(run_folder.path / PROMOTED)
    project.progress.log(f"promoted {decide_outcome(project, run_folder).live_as} ({verdict.candidate})")
    return promotion


def shadow_stage(project: Project, run_folder: RunFolder) -> Promotion | None:
    """Register the plan that was expected to keep most and could not be promised, to draft until a second look.

    None if no plan was tried.
    """
    trials = run_folder.verdicts().trials
    if not trials:
        return None
    verdict = trials[0]
    if Certified.load(run_folder.path / CERTIFIED).candidate != verdict.candidate:
        certify_candidate(project, run_folder, verdict.candidate, alone=False)  # the same look as before
    return _register(project, run_folder, verdict, only_drafts=True)


def _register(project: Project, run_folder: RunFolder, verdict: Verdict, *, only_drafts: bool = False) -> Promotion:
    """Register a certified candidate and ask it over HTTP; where it `only_drafts`, name it `shadow`."""
    version = versions.register(
        run_folder.model_folder(verdict.candidate),
        verdict,
        name=project.file.register_to,
        run_id=run_folder.mlflow_run_id(),
        tags={"task": project.file.name, "run": run_folder.path.name},
        only_drafts=only_drafts,
    )
    parity_stage(project, run_folder, version, verdict.candidate)
    promotion = Promotion(
        name=version.name,
        version=version.version,
        candidate=verdict.candidate,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=verdict.plan,
    )
    attach_certified(promotion, Certified.load(run_folder.path / CERTIFIED), run_folder)
    if only_drafts or not answers_live(project, run_folder):
        versions.name_shadow(version.name, version.version)
        project.progress.log(
            f"registered {version.name} version {version.version} @shadow: nothing of it may be answered"
        )
    return promotion


def decide_outcome(project: Project, run_folder: RunFolder, *, shadow: Promotion | None = None) -> Outcome:
    """Return the outcome of a run that was gated; save it in the run, with the version, and in MLflow.

    A later stage replaces it. `shadow` is a version that was registered and is not live.
    """
    goes_live = answers_live(project, run_folder)
    found = _live(project, run_folder) if goes_live else _not_live(project, run_folder)
    registered = run_folder.find(Promotion, PROMOTED) if goes_live else shadow
    if registered is not None:
        alias = versions.CHAMPION if goes_live else versions.SHADOW
        found = found.model_copy(update={"model": registered.name, "version": registered.version, "alias": alias})
        raw = found.model_dump_json(indent=2).encode()
        versions.attach(registered.name, registered.version, OUTCOME, raw)
        versions.tag(registered.name, registered.version, found.facts)
    found.save(run_folder.path / OUTCOME)
    run = runs.tracked_run(run_folder.mlflow_run_id())
    run.set_tags(found.facts)
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


def _certified(project: Project, run_folder: RunFolder) -> Certified | None:
    """Return what was certified last, if a gate or a confirmed plan lets it go live; else None."""
    found, live = run_folder.find(Certified, CERTIFIED), run_folder.find(Promotion, PROMOTED)
    if found is None:
        return None
    if live is not None:
        return found.model_copy(update={"candidate": live.candidate, "plan": live.plan})
    verdicts = run_folder.verdicts()
    if found.plan == "small alone":
        return found if may_go_alone(project, verdicts.of(found.candidate)) else None
    return found if verdicts.confirmed and verdicts.confirmed.candidate == found.candidate else None


def _live(project: Project, run_folder: RunFolder) -> Outcome:
    """Return who answers what, with which proof."""
    certified, large = _certified(project, run_folder), run_folder.evaluation("large", "test")
    routed = run_folder.evaluation("routed", "test")
    assert certified is not None
    assert routed is not None
    certificate, verdict = certified.certificate, run_folder.verdicts().of(certified.candidate)
    who, small = {answerer(row.stage) for row in routed.rows}, routed.stays_small
    rest = "large" if who & {Answerer.LARGE, Answerer.GENERAL} else "person" if Answerer.PERSON in who else ""
    plan = "small first" if certified.plan == "small first" or rest else "small alone"
    rest = rest or ("refused" if Answerer.NOBODY in who else "")
    kept = run_folder.find(KeptOnTest, KEPT) if certificate.issued else None
    promised = wilson(kept.n_kept, kept.n_rows) if kept else None
    all_promised = all(row.certified for row, ours in zip(routed.rows, small, strict=True) if ours)
    n_due = sum(row.gold != project.task.no_answer for row in routed.rows)
    bill = share_of_bill(routed, large) if large else None
    answered = [row.correct for row in routed.rows if answerer(row.stage) is not Answerer.PERSON]
    measured = run_folder.evaluation(certified.candidate, "test")
    by_gate = holds_to_gate(project, certified, verdict, all_small=plan == "small alone")
    audited = AuditedAccuracy.of(project.file.gate, measured, large) if measured is not None and by_gate else None
    return Outcome(
        kind=plan,
        candidate=certified.candidate,
        title=get_candidate(certified.candidate).title,
        gate="signed" if verdict.signed_by else "passed" if verdict.passed else "failed",
        counted=project.task.answered_noun,
        share_small=promised if promised and all_promised else wilson(sum(small), max(sum(small), n_due)),
        share_promised=promised,
        promise=certificate.guarantee.in_words if certificate.issued else "",
        accuracy=wilson(sum(answered), len(answered)) if answered else None,
        share_of_bill=bill if bill and math.isfinite(bill.high) else None,
        large=project.file.large is not None,
        rest=rest or ("large" if plan == "small first" and project.file.large else ""),
        watched_by=_judge(project, certificate, audited),
        audited=audited,
        signed=f"{verdict.signed_by} ({verdict.because})" if verdict.signed_by else "",
        why="" if certificate.issued else certificate.report.why,
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


def _not_live(project: Project, run_folder: RunFolder) -> Outcome:
    """Return the rows that would decide it, else what fails; and the line of a gate that only has to be written."""
    needed, verdicts = labels_needed(project, run_folder), run_folder.verdicts()
    found = Outcome(
        kind="keep the large model" if needed is None else "cannot be told yet",
        labels_needed=needed,
        large=project.file.large is not None,
        why=_why_not(project, run_folder),
    )
    met = verdicts.winner if project.file.goes_live in RULES else project.file.goes_live
    if met is None or not verdicts.of(met).passed or project.file.may_have_no_answer:
        return found
    found = found.model_copy(update={"title": get_candidate(met).title, "gate": "passed"})
    if may_go_alone(project, verdicts.of(met)):
        return found
    measured = run_folder.evaluation(met, "test")
    missing = {"gate": "not written", "gate_line": gate_line(project), "accuracy": measured and measured.accuracy}
    return found.model_copy(update=missing)


def _why_not(project: Project, run_folder: RunFolder) -> str:
    if (certified := _certified(project, run_folder)) is not None:
        return f"what is right cannot be told from what is wrong well enough: {certified.certificate.report.why}"
    verdicts = run_folder.verdicts()
    nearest = verdicts.trials[0] if verdicts.trials else nearest_to_passing(verdicts.verdicts)
    check, title = nearest.furthest_off, get_candidate(nearest.candidate).title
    if check is None:
        return ""
    who = f"no candidate may go live alone, and “{title}” first" if verdicts.trials else f"“{title}” comes nearest and"
    return f"{who} misses “{check.requirement}”{'' if check.name == PROMISE else f' ({check.measured})'}"
