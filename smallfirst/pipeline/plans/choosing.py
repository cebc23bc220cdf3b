"""What candidates are chosen by: answers to selection rows and, where these are few, out-of-fold ones to training rows.

Neither calibration nor test rows are looked at. All candidates are judged by the same rows: where one of them takes too
long to be fitted several times, selection rows alone choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.evaluation.evaluate import EvaluationSetup, summarize
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.gate.gate import cheapest_first
from smallfirst.project.candidate_registry import promotable_names
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.routing.certificate.guarantee import Guarantee

CHOOSING = "choosing"
"""Name of the split in a run folder."""
ENOUGH_ROWS = 200
"""Selection rows from which no out-of-fold answers are made."""
MAX_FITTED_ROWS = 3000
"""Training rows above which none are made: fitting takes long, and selection rows are many."""


class ExpectedPlan(NamedTuple):
    """A plan "this candidate first, the rest to the large model", as the rows that choose let expect it."""

    candidate: str
    share: float
    """Share of requests that stay small, in [0, 1]."""
    usd_per_1k: float | None
    """Cost of 1,000 requests, and of their wrong answers where `routing.usd_per_wrong_answer` prices these; None
    without a price of the large model."""


def choosing_evaluations(project: Project, run_folder: RunFolder) -> list[Evaluation]:
    """Return the evaluations of the candidates that may go live, the cheapest first; make what is missing."""
    rows = project.rows
    found = cheapest_first([one for name in promotable_names() if (one := run_folder.evaluation(name, "selection"))])
    few = len(rows.selection) < ENOUGH_ROWS and len(rows.train) <= MAX_FITTED_ROWS
    if few and all(get_candidate(one.candidate).fitted_in_folds for one in found):
        return [_with_out_of_fold(project, run_folder, one) for one in found]
    return found


def expected_plans(project: Project, run_folder: RunFolder) -> list[ExpectedPlan]:
    """Return a plan for each candidate that was measured on calibration rows, the cheapest first.

    Without a price of the large model the one that keeps most comes first; of equals the cheapest candidate.
    """
    guarantee, named = project.file.routing.guarantee, project.file.routing.small
    large = run_folder.evaluation("large", "calibration") or run_folder.evaluation("large", "test")
    plans = []
    for measured in choosing_evaluations(project, run_folder):
        if run_folder.evaluation(measured.candidate, "calibration") is None:
            continue
        if named in promotable_names() and measured.candidate != named:
            continue
        share = expected_share(measured.rows, guarantee)
        usd = None
        if large is not None and large.cost_usd_per_1k > 0:
            usd = measured.cost_usd_per_1k + (1 - share) * large.cost_usd_per_1k
            usd += 1000 * (project.file.routing.usd_per_wrong_answer or 0) * _wrong(measured.rows, share, large)
        plans.append(ExpectedPlan(measured.candidate, share, usd))
    return sorted(plans, key=lambda plan: -plan.share if plan.usd_per_1k is None else plan.usd_per_1k)


def expected_share(rows: Sequence[EvaluatedRow], guarantee: Guarantee) -> float:
    """Return the largest share of the most confident answers that are wrong at most as often as is guaranteed.

    Without a limit on errors it is the share of right answers.
    """
    if not rows:
        return 0.0
    right = np.array([row.correct for row in sorted(rows, key=lambda row: -(row.confidence or 0.0))])
    if guarantee.max_error is None:
        return float(right.mean())
    kept = np.arange(1, len(right) + 1)
    good = np.cumsum(~right) <= guarantee.max_error * kept
    return float(kept[good].max(initial=0)) / len(right)


def _wrong(rows: Sequence[EvaluatedRow], share: float, large: Evaluation) -> float:
    """Return the expected share of wrong answers over all requests, in [0, 1]."""
    confident = sorted(rows, key=lambda row: -(row.confidence or 0.0))[: round(share * len(rows))]
    kept = sum(not row.correct for row in confident) / max(1, len(rows))
    return kept + (1 - share) * (1 - large.accuracy.value)


def _with_out_of_fold(project: Project, run_folder: RunFolder, on_selection: Evaluation) -> Evaluation:
    """Return the evaluation with out-of-fold answers to the training rows, where the candidate can make them."""
    rows, name = project.rows, on_selection.candidate
    data = rows.train.subset(CHOOSING, (*rows.train.examples, *rows.selection.examples))
    saved = run_folder.evaluation(name, CHOOSING)
    if saved is not None and saved.dataset_fingerprint == data.content_fingerprint:
        return saved
    answers = get_candidate(name).out_of_fold(project)
    if answers is None:
        return on_selection
    found = summarize(
        (*answers, *on_selection.rows),
        EvaluationSetup(project.task, data, split=CHOOSING),
        candidate=name,
        model=on_selection.model,
        latencies_ms=[],
        requests_per_s=None,
        note=f"{len(answers):,} training rows answered out of fold, {len(on_selection.rows):,} selection rows",
    )
    cost = on_selection.cost_usd_per_1k
    found = found.model_copy(update={"cost_usd_per_1k": cost})
    run_folder.save_evaluation(found)
    project.progress.log(f"{name} on rows to choose with: {found.in_words} ({found.note})")
    return found
