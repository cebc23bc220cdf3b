"""The outcome of a run, from what its stages left: what goes live with which proof, or which rows would decide it."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.gate.routed import stays_small
from smallfirst.gate.verdict import LabelsNeeded, Outcome, PlanTrial, nearest_to_passing
from smallfirst.pipeline.plans.small_first import PROMISE, PlanTrials
from smallfirst.pipeline.preflight.more_rows import more_rows
from smallfirst.pipeline.summary import KEPT, KeptOnTest
from smallfirst.pricing.money import format_usd
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import CERTIFICATE, OUTCOME, PROMOTED, Promotion, RunFolder
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import wilson


def decide_outcome(project: Project, run_folder: RunFolder, plan: PlanTrial | None = None) -> Outcome:
    """Return the outcome of a run that was gated, and save it; a later stage replaces it.

    `plan` passed and is not promoted yet.
    """
    trials = PlanTrials.of(run_folder).trials
    live = run_folder.find(Promotion, PROMOTED) or (plan.verdict if plan else None)
    found = _live(project, run_folder, live.candidate, live.plan) if live else None
    if found is None:
        found = _undecided(project, run_folder) or _keep_large(project, run_folder)
    found = found.model_copy(update={"trials": trials})
    found.save(run_folder.path / OUTCOME)
    return found


def _live(project: Project, run_folder: RunFolder, candidate: str, plan: str) -> Outcome | None:
    """Return what goes live; None if nothing certifies its answers and nobody signed."""
    certificate = run_folder.find(Certificate, CERTIFICATE)
    routed, large = run_folder.evaluation("routed", "test"), run_folder.evaluation("large", "test")
    signed = project.file.routing.override is not None
    if certificate is None or routed is None or not (certificate.issued or signed):
        return None
    kept = run_folder.find(KeptOnTest, KEPT)
    small = stays_small(routed)
    share = wilson(sum(small), len(small))
    alone = plan == "small alone" and share.value == 1
    if plan == "small first" and kept is not None:
        share = wilson(kept.n_kept, kept.n_rows)
    bill = None
    if large is not None and large.cost_usd_per_1k > 0:
        pairs = [(row.cost_usd, large.by_key[row.key].cost_usd) for row in routed.rows if row.key in large.by_key]
        theirs = sum(cost for _, cost in pairs)
        bill = sum(cost for cost, _ in pairs) / theirs if theirs else None
    promise = certificate.guarantee.in_words if certificate.issued else ""
    cost = f", at {_percent(bill)} of the large model's bill" if bill is not None else ""
    if alone:
        measured = run_folder.evaluation(candidate, "test")
        assert measured is not None
        right = f"right on {measured.accuracy} of {measured.accuracy.n:,} test rows"
        certified = f"; {promise}" if promise else ""
        sentence = f"Small alone: {_title(candidate)} answers every request, {right}{cost}{certified}."
    else:
        rest = "the large model" if project.file.large else "a person"
        answered = f"{_percent(share.value)} [{_percent(share.low)}, {_percent(share.high)}] of requests"
        sentence = f"Small first: {_title(candidate)} answers {answered}{cost}; {promise}; the rest goes to {rest}."
    return Outcome(
        kind="small alone" if alone else "small first",
        sentence=sentence,
        candidate=candidate,
        share_small=share,
        share_of_bill=bill,
        promise=promise,
        n_kept=kept.n_kept if kept else 0,
        n_kept_wrong=kept.n_wrong if kept else 0,
    )


def _undecided(project: Project, run_folder: RunFolder) -> Outcome | None:
    """Return the verdict that more rows would decide; None if no number of rows is known to."""
    needed = min(_rows_that_decide(project, run_folder), key=lambda one: one.n_data_rows, default=None)
    if needed is None:
        return None
    price = f", about {format_usd(needed.usd)} by {needed.priced_by}" if needed.usd is not None else ""
    meanwhile = "the large model answers" if project.file.large else "nothing goes live"
    sentence = f"Cannot be told yet: label {needed.in_words}{price}. Until then {meanwhile}."
    return Outcome(kind="cannot be told yet", sentence=sentence, labels_needed=needed)


def _rows_that_decide(project: Project, run_folder: RunFolder) -> Iterator[LabelsNeeded]:
    for verdict in (*run_folder.verdicts().verdicts, *(trial.verdict for trial in PlanTrials.of(run_folder).trials)):
        failed = verdict.failed_checks
        missing = [check.more_rows for check in failed]
        if not failed or None in missing:
            continue
        promise = [check.more_rows for check in failed if check.name == PROMISE]
        part = "calibration" if promise else "test"
        yield _priced(project, run_folder, part, max(n for n in (promise or missing) if n is not None))
    certificate = _refused(run_folder)
    if certificate is not None and certificate.labels_missing:
        yield _priced(project, run_folder, "calibration", certificate.labels_missing)


def _keep_large(project: Project, run_folder: RunFolder) -> Outcome:
    trials, certificate = PlanTrials.of(run_folder).trials, _refused(run_folder)
    if trials:
        nearest = trials[0].verdict
        check = max(nearest.failed_checks, key=lambda one: one.shortfall)
        why = f"no candidate passes its gate alone, and {_title(nearest.candidate)} first misses “{check.requirement}”"
        why += f" ({check.measured})" if check.name != PROMISE else ""
    elif certificate is not None:
        why = f"what is right cannot be told from what is wrong well enough: {certificate.why}"
    else:
        verdict = nearest_to_passing(run_folder.verdicts().verdicts)
        check = max(verdict.failed_checks, key=lambda one: one.shortfall)
        why = f"{_title(verdict.candidate)} comes nearest and misses “{check.requirement}” ({check.measured})"
    start = "Keep the large model" if project.file.large else "Keep what answers today"
    return Outcome(kind="keep the large model", sentence=f"{start}: {why}.")


def _refused(run_folder: RunFolder) -> Certificate | None:
    """Return the certificate of a version that passed its gate alone, if it was refused."""
    certificate = run_folder.find(Certificate, CERTIFICATE)
    refused = certificate is not None and not certificate.issued
    return certificate if refused and run_folder.find(Promotion, PROMOTED) else None


def _priced(project: Project, run_folder: RunFolder, part: str, n_rows: int) -> LabelsNeeded:
    needed, large = more_rows(project, part, n_rows), run_folder.evaluation("large", "test")
    usd, by = None, ""
    if project.file.prices.usd_per_label is not None:
        usd, by = needed.n_data_rows * project.file.prices.usd_per_label, "a person"
    elif large is not None and large.cost_usd_per_1k > 0:
        usd, by = needed.n_data_rows * large.cost_usd_per_1k / 1000, "the large model"
    return LabelsNeeded(
        part="test" if part == "test" else "calibration",
        n_rows=n_rows,
        n_data_rows=needed.n_data_rows,
        usd=usd,
        priced_by=by,
        in_words=needed.in_words,
    )


def _title(candidate: str) -> str:
    return f"“{get_candidate(candidate).title}”"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
