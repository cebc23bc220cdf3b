"""Plans: small where a certificate covers it, large elsewhere; if no candidate passes alone, or a plan is worth more.

They come by worth, as the rows that choose let expect it. Each is certified on calibration rows, a look of its own, and
then confirmed on test rows by `gate.routed`, at an equal share of what the gate's level holds for plans; the first that
passes goes live.
"""

from __future__ import annotations

import asyncio

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckResult, ConfidenceLevel, Requirement, check_value
from smallfirst.gate.choice import PLANS
from smallfirst.gate.limits import check_routed
from smallfirst.gate.verdict import Verdict, format_verdict
from smallfirst.pipeline.calibrate import certify_candidate
from smallfirst.pipeline.diagnostics import find_split_leaks, without_copies
from smallfirst.pipeline.evaluate import measure_router
from smallfirst.pipeline.plans.labels_needed import PROMISE
from smallfirst.pipeline.plans.worth import expected_plans, fix_finalists
from smallfirst.pricing.money import format_usd
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project, shown_as
from smallfirst.project.run_folder import CERTIFICATE, RunFolder
from smallfirst.records import Record
from smallfirst.routing.certificate.certificate import Certificate

TRIALS = "plans.json"
"""File of the PlanTrials in a run folder."""


class PlanTrials(Record):
    """Verdicts on the plans that were tried, in order; only the last one may have passed."""

    trials: tuple[Verdict, ...] = ()

    @classmethod
    def of(cls, run_folder: RunFolder) -> PlanTrials:
        """Load what a run tried; nothing if a candidate passed its gate alone."""
        return run_folder.find(cls, TRIALS) or cls()

    @property
    def passed(self) -> Verdict | None:
        """The plan that may go live, or None."""
        return next((trial for trial in self.trials if trial.passed), None)


@shown_as("looking for a part of the requests that can stay small")
def small_first_stage(project: Project, run_folder: RunFolder, *, instead_of: str = "") -> PlanTrials:
    """Try the plans in order until one passes; save and return what was tried.

    `instead_of` is a candidate that may answer every request: only plans that are expected to be worth more are tried.
    """
    level = ConfidenceLevel(len(fix_finalists(project, run_folder).names) / PLANS)
    trials: list[Verdict] = []
    first: Certificate | None = None
    for plan in expected_plans(project, run_folder, instead_of=instead_of):
        verdict = _try(project, run_folder, plan.candidate, level, instead_of)
        first = first or run_folder.certificate()
        trials.append(verdict)
        PlanTrials(trials=tuple(trials)).save(run_folder.path / TRIALS)
        if verdict.passed:
            break
    else:
        if first is not None:  # the one that was expected to keep most, at the whole of the first look's level
            first.save(run_folder.path / CERTIFICATE)
    return PlanTrials(trials=tuple(trials))


def _try(project: Project, run_folder: RunFolder, candidate: str, level: ConfidenceLevel, instead_of: str) -> Verdict:
    """Return the verdict on one plan. The Router is measured if the promise is shown."""
    certified = certify_candidate(project, run_folder, candidate, alone=False)
    checks = [_promise_check(certified.certificate)]
    if certified.certificate.issued:
        asyncio.run(measure_router(project, run_folder, certified.certificate, certified.heads, candidate=candidate))
        routed, large = run_folder.evaluation("routed", "test"), run_folder.evaluation("large", "test")
        assert routed is not None
        routed = without_copies(project, routed, find_split_leaks(project, run_folder))
        checks += check_routed(project.file.gate.routed, routed, large, level)
        if instead_of and (alone := run_folder.evaluation(instead_of, "test")):
            checks.append(_worth_check(routed, alone, project.file.routing.usd_per_wrong_answer or 0.0))
    measured = run_folder.evaluation(candidate, "test")
    assert measured is not None
    verdict = Verdict(
        candidate=candidate,
        plan="small first",
        checks=tuple(checks),
        passed=all(check.passed for check in checks),
        evaluation_fingerprint=measured.fingerprint(),
    )
    project.progress.log(format_verdict(verdict))
    return verdict


def _promise_check(certificate: Certificate) -> CheckResult:
    """Return whether the guarantee is shown on calibration rows."""
    words = certificate.guarantee.in_words
    requirement = Requirement(PROMISE, certificate.guarantee.max_error or 1.0, f"a certificate: {words}")
    kept = f"{certificate.n_accepted} of {certificate.n_labels} calibration rows stay small"
    return check_value(
        requirement,
        passed=certificate.issued,
        measured=f"{kept}, {certificate.n_errors} of them wrong" if certificate.issued else certificate.why,
    )


def _worth_check(routed: Evaluation, alone: Evaluation, usd_per_wrong_answer: float) -> CheckResult:
    """Return whether the plan loses less than a candidate alone on test rows: its certificate may keep less than hoped.

    The candidate passed its gate, so ties are won by it. Without this check plans made it worse where the large model
    is weak, and the printed accuracy covers the truth as often with it (`benchmarks/results/choice.md`).
    """
    losses = [
        1000 * sum(row.cost_usd + usd_per_wrong_answer * (not row.correct) for row in one) / max(1, len(one))
        for one in (routed.rows, [alone.by_key[row.key] for row in routed.rows if row.key in alone.by_key])
    ]
    name = get_candidate(alone.candidate).title
    text = f"costs less than “{name}” alone, wrong answers at {format_usd(usd_per_wrong_answer)}"
    return check_value(
        Requirement("routing.usd_per_wrong_answer", usd_per_wrong_answer, text),
        passed=losses[0] < losses[1],
        measured=f"{format_usd(losses[0])} against {format_usd(losses[1])} per 1,000, n={len(routed.rows)}",
    )
