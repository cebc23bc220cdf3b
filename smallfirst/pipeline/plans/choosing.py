"""What candidates are chosen by: answers to selection rows and, where these are few, out-of-fold ones to training rows.

Neither calibration nor test rows are looked at. All candidates are judged by the same rows: where one of them takes too
long to be fitted several times, selection rows alone choose.
"""

from __future__ import annotations

from smallfirst.evaluation.evaluate import EvaluationSetup, summarize
from smallfirst.evaluation.results import Evaluation
from smallfirst.project.candidate_registry import promotable_names
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder

CHOOSING = "choosing"
"""Name of the split in a run folder."""
ENOUGH_ROWS = 200
"""Selection rows from which no out-of-fold answers are made."""
MAX_FITTED_ROWS = 3000
"""Training rows above which none are made: fitting takes long, and selection rows are many."""


def choosing_evaluations(project: Project, run_folder: RunFolder) -> list[Evaluation]:
    """Return the evaluations of the candidates that may go live, the smallest first; make what is missing."""
    rows = project.rows
    found = [one for name in promotable_names() if (one := run_folder.evaluation(name, "selection"))]
    few = len(rows.selection) < ENOUGH_ROWS and len(rows.train) <= MAX_FITTED_ROWS
    if few and all(get_candidate(one.candidate).fitted_in_folds for one in found):
        return [_with_out_of_fold(project, run_folder, one) for one in found]
    return found


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
