"""What candidates are chosen by: out-of-fold answers to training and selection rows, or answers to selection rows.

Neither calibration nor test rows are looked at.
"""

from __future__ import annotations

from smallfirst.evaluation.results import Evaluation
from smallfirst.project.candidate_registry import promotable_names
from smallfirst.project.project import Project
from smallfirst.project.run_folder import FINALISTS, Finalists, RunFolder

CHOOSING = "choosing"
"""Name of the split of out-of-fold answers in a run folder."""


def chosen_by(run_folder: RunFolder, candidate: str) -> Evaluation | None:
    """Return what a candidate is chosen by; None if it was not measured.

    One that was fitted in folds has out-of-fold answers to training and selection rows, another one its answers to
    selection rows.
    """
    return run_folder.evaluation(candidate, CHOOSING) or run_folder.evaluation(candidate, "selection")


def choosing_evaluations(project: Project, run_folder: RunFolder) -> list[Evaluation]:
    """Return what the candidates that may go live are chosen by, the smallest first.

    Two of them are compared on the rows that both have answered.
    """
    found = (chosen_by(run_folder, name) for name in promotable_names())
    return [one for one in found if one]


def no_finalists(run_folder: RunFolder) -> dict[str, str]:
    """Return why each candidate that was measured to choose, and is no finalist, was left out, by name."""
    finalists = run_folder.find(Finalists, FINALISTS)
    found = {} if finalists is None else {name: chosen_by(run_folder, name) for name in promotable_names()}
    rows = {CHOOSING: "out of fold", "selection": "to select with"}
    return {
        name: f"no finalist by its accuracy {one.accuracy} on {one.accuracy.n:,} rows {rows[one.split]}; test rows "
        "were not asked, so it cannot go live"
        for name, one in found.items()
        if one is not None and finalists is not None and name not in finalists.names
    }
