"""What candidates and plans are worth, by the rows that choose: the finalists and their order, and the order of plans.

A candidate is chosen by out-of-fold answers to training and selection rows or, if it was not fitted in folds, by its
answers to selection rows; two are compared on the rows that both have answered. Error and price of the large model are
those of calibration rows. So the order of finalists, and with it their shares of the gate's level, is independent of
every test row.
"""

from __future__ import annotations

import numpy as np

from smallfirst.measuring.choice import Option, WorthRule, choose_candidates, level_shares, would_pass
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.outcome import share_words
from smallfirst.models.pricing.charge import format_usd
from smallfirst.path.diagnostics import find_split_leaks
from smallfirst.path.project.candidate_registry import promotable_names
from smallfirst.path.project.candidates import get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FINALISTS, Finalists, RunFolder
from smallfirst.path.project.task_file import RULES, SMALLEST, TaskFile
from smallfirst.routing.certificate.guarantee import Guarantee

CHOOSING = "choosing"
"""Name of the split of out-of-fold answers in a run folder."""
MAX_FINALISTS = 3
"""Candidates that test rows are asked about: each more takes a part of the level from the others."""


def chosen_by(run_folder: RunFolder, candidate: str) -> Evaluation | None:
    """Return what a candidate is chosen by; None if it was not measured."""
    return run_folder.evaluation(candidate, CHOOSING) or run_folder.evaluation(candidate, "selection")


def choosing_evaluations(run_folder: RunFolder) -> list[Evaluation]:
    """Return what the candidates that may go live are chosen by, the smallest first."""
    return [one for name in promotable_names() if (one := chosen_by(run_folder, name))]


def no_finalists(run_folder: RunFolder) -> dict[str, str]:
    """Return why each candidate that was measured to choose, and is no finalist, was left out, by name."""
    if (finalists := run_folder.find(Finalists, FINALISTS)) is None:
        return {}
    rows = {CHOOSING: "out of fold", "selection": "to select with"}
    return {
        one.candidate: f"no finalist by its accuracy {one.accuracy} on {one.accuracy.n:,} rows {rows[one.split]}; test "
        "rows were not asked, so it cannot go live"
        for one in choosing_evaluations(run_folder)
        if one.candidate not in finalists.names
    }


def worth_rule(file: TaskFile) -> WorthRule:
    """Return the rule of task.yaml by which candidates and plans are ordered."""
    if file.routing.small == SMALLEST:
        return WorthRule(accuracy_within=1.0)
    return WorthRule(file.routing.accuracy_within, file.routing.usd_per_wrong_answer)


def fix_finalists(project: Project, run_folder: RunFolder) -> Finalists:
    """Return the finalists of a run with their shares of the gate's level; choose and save them if nobody has.

    Call it before a test row is read: those that are expected to meet the gate come first, by worth, then the most
    accurate; one that task.yaml names before all. Where its guarantee binds answers, and a large model takes the rest,
    a candidate is worth what its plan is. Naming another candidate later chooses anew.
    """
    file, saved = project.file, run_folder.find(Finalists, FINALISTS)
    if saved is not None and file.goes_live in (*RULES, *saved.names):
        return saved
    measured, leaks = choosing_evaluations(run_folder), find_split_leaks(project, run_folder)
    n_test = sum(row.key not in leaks.keys for row in project.rows.test.examples)
    expected = {one.candidate: would_pass(file.gate, one, n_test) for one in measured}
    rule, options = worth_rule(file), [Option.alone(one) for one in measured]
    if file.binds_answers and (large := _large(run_folder)) is not None:
        rule, options = rule._replace(alike=1.0), [plan_option(one, file.routing.guarantee, large) for one in measured]
    names = choose_candidates(options, rule, expected=expected.__getitem__)
    names += [name for name in promotable_names() if name not in names and run_folder.evaluation(name, "test")]
    names.sort(key=lambda name: name != file.goes_live)
    found = Finalists(names=tuple(names[:MAX_FINALISTS]), shares=level_shares(names[:MAX_FINALISTS]))
    found.save(run_folder.path / FINALISTS)
    return found


def expected_plans(project: Project, run_folder: RunFolder, *, instead_of: str = "") -> list[Option]:
    """Return a plan for each finalist that was measured on calibration rows, by worth, the best first.

    `instead_of` is a candidate that may answer alone: only the plans of less expected loss are left, which takes a
    declared price of a wrong answer and a known one of the large model.
    """
    rule, large, file = worth_rule(project.file)._replace(alike=1.0), _large(run_folder), project.file
    finalists = fix_finalists(project, run_folder).names
    measured = [one for one in choosing_evaluations(run_folder) if one.candidate in finalists]
    options = [
        plan_option(one, file.routing.guarantee, large)
        for one in measured
        if file.goes_live in (*RULES, one.candidate) and run_folder.evaluation(one.candidate, "calibration")
    ]
    alone = [Option.alone(one) for one in measured if one.candidate == instead_of]
    if not instead_of:
        return rule.order(options)
    if rule.usd_per_wrong_answer is None or large is None or not alone or file.binds_answers:
        return []
    ordered = rule.order([*alone, *options])
    return ordered[: ordered.index(alone[0])]


def plan_option(measured: Evaluation, guarantee: Guarantee, large: Evaluation | None) -> Option:
    """Return the plan that keeps as many of the most confident answers as are wrong at most as often as is guaranteed.

    Without a limit on errors it keeps as many as are right. Without a price of the large model an escalated request
    costs 1 USD, more than any small answer, and is right.
    """
    rows = sorted(measured.rows, key=lambda row: -(row.confidence or 0.0))
    right, n = np.array([row.correct for row in rows], dtype=bool), np.arange(1, len(rows) + 1)
    fine = n <= right.sum() if guarantee.max_error is None else np.cumsum(~right) <= guarantee.max_error * n
    n_kept = int(n[fine].max(initial=0))
    price, error = (1.0, 0.0) if large is None else (large.cost_usd_per_1k / 1000, 1 - large.accuracy.value)
    wrong = {row.key: float(not row.correct) if i < n_kept else error for i, row in enumerate(rows)}
    usd = measured.cost_usd_per_1k / 1000 + (1 - n_kept / max(1, len(rows))) * price
    return Option(measured.candidate, usd, wrong)


def price_of_guarantee(project: Project, run_folder: RunFolder, routed: Evaluation) -> str:
    """Return a sentence on the candidate that would do at least as well alone, but for the guarantee of task.yaml.

    Empty where the guarantee binds nothing, nobody passed the gate alone, or `routed` is right more often.
    """
    file, winner = project.file, run_folder.verdicts().winner
    alone = run_folder.evaluation(winner, "test") if winner and file.sets_gate and file.binds_answers else None
    if alone is None or routed.accuracy.value > alone.accuracy.value or routed.cost_usd_per_1k < alone.cost_usd_per_1k:
        return ""
    title, right = get_candidate(alone.candidate).title, share_words(alone.accuracy)
    cost = f"{format_usd(alone.cost_usd_per_1k)} per 1,000 requests in place of {format_usd(routed.cost_usd_per_1k)}"
    return (
        f"Without routing.guarantee “{title}” alone would answer every request: right on {right} of "
        f"{alone.accuracy.n:,} test rows, at {cost}."
    )


def _large(run_folder: RunFolder) -> Evaluation | None:
    """Return the large model on calibration rows; None if it was not asked or has no price."""
    found = run_folder.evaluation("large", "calibration")
    return found if found is not None and found.cost_usd_per_1k > 0 else None
