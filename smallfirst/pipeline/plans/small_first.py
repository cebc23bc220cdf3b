"""The plan that is left where no candidate passes its gate alone: small where a certificate covers it, large elsewhere.

Plans come in an order that was fixed on selection rows. Each is certified on calibration rows, a look of its own, and
then confirmed on test rows by `gate.routed`, at its share of the level; the first that passes goes live.
"""

from __future__ import annotations

import asyncio

from smallfirst.gate.check_result import CheckResult, ConfidenceLevel, Requirement, check_value
from smallfirst.gate.gate import PLANS
from smallfirst.gate.outcome import PlanTrial
from smallfirst.gate.routed import check_routed
from smallfirst.gate.verdict import Verdict, format_verdict
from smallfirst.pipeline.calibrate import certify_candidate
from smallfirst.pipeline.diagnostics import find_split_leaks, without_copies
from smallfirst.pipeline.evaluate import measure_router
from smallfirst.pipeline.plans.choosing import ExpectedPlan, expected_plans
from smallfirst.project.project import Project, shown_as
from smallfirst.project.run_folder import CERTIFICATE, RunFolder
from smallfirst.records import Record
from smallfirst.routing.certificate.certificate import Certificate

TRIALS = "plans.json"
"""File of the PlanTrials in a run folder."""


PROMISE = "routing.guarantee"
"""Name of the check that a certificate is issued."""


class PlanTrials(Record):
    """The plans that were tried, in order; only the last one may have passed."""

    trials: tuple[PlanTrial, ...] = ()

    @classmethod
    def of(cls, run_folder: RunFolder) -> PlanTrials:
        """Load what a run tried; nothing if a candidate passed its gate alone."""
        return run_folder.find(cls, TRIALS) or cls()

    @property
    def passed(self) -> PlanTrial | None:
        """The plan that may go live, or None."""
        return next((trial for trial in self.trials if trial.verdict.passed), None)


@shown_as("looking for a part of the requests that can stay small")
def small_first_stage(project: Project, run_folder: RunFolder) -> PlanTrials:
    """Try the plans in order until one passes; save and return what was tried."""
    trials: list[PlanTrial] = []
    first: Certificate | None = None
    for plan, share in zip(expected_plans(project, run_folder), PLANS, strict=False):
        verdict = _try(project, run_folder, plan, ConfidenceLevel(1 / share))
        first = first or run_folder.certificate()
        trials.append(
            PlanTrial(
                candidate=plan.candidate,
                share_expected=plan.share,
                usd_per_1k_expected=plan.usd_per_1k,
                verdict=verdict,
            )
        )
        PlanTrials(trials=tuple(trials)).save(run_folder.path / TRIALS)
        if verdict.passed:
            break
    else:
        if first is not None:  # the one that was expected to keep most, at the whole of the first look's level
            first.save(run_folder.path / CERTIFICATE)
    return PlanTrials(trials=tuple(trials))


def _try(project: Project, run_folder: RunFolder, plan: ExpectedPlan, level: ConfidenceLevel) -> Verdict:
    """Return the verdict on one plan. The Router is measured if the promise is shown."""
    candidate = plan.candidate
    certified = certify_candidate(project, run_folder, candidate, alone=False)
    checks = [_promise_check(certified.certificate)]
    if certified.certificate.issued:
        asyncio.run(measure_router(project, run_folder, certified.certificate, certified.heads, candidate=candidate))
        routed, large = run_folder.evaluation("routed", "test"), run_folder.evaluation("large", "test")
        assert routed is not None
        routed = without_copies(project, routed, find_split_leaks(project, run_folder))
        checks += check_routed(project.file.gate.routed, routed, large, level)
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
    """Return whether the guarantee is shown on calibration rows; `more_rows` are calibration rows."""
    words = certificate.guarantee.in_words
    requirement = Requirement(PROMISE, certificate.max_error, f"a certificate: {words}")
    kept = f"{certificate.n_accepted} of {certificate.n_labels} calibration rows stay small"
    missing = certificate.labels_missing
    advice = (
        f"label about {missing} more calibration rows" if missing else "no number of rows like these is likely to do"
    )
    found = check_value(
        requirement,
        passed=certificate.issued,
        measured=f"{kept}, {certificate.n_errors} of them wrong" if certificate.issued else certificate.why,
        advice="" if certificate.issued else advice,
    )
    return found.model_copy(update={"more_rows": None if certificate.issued else missing})
