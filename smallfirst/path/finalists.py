"""What a run fixes before a test row is read: the finalists and plans by worth, and which rows certify them.

A candidate is chosen by out-of-fold answers to training and selection rows or, if it was not fitted in folds, by its
answers to selection rows; two are compared on the rows that both have answered. Error and price of the large model are
those of calibration rows. So the order of finalists, and with it their shares of the gate's level, is independent of
every test row.

Test rows certify together with the calibration rows, although the gate reads them too. For a candidate that was fixed
before, P(it goes live and its promise is false) <= P(its certificate is false) <= its level, whatever the gate does
with the same rows. So the level is divided among all candidates that may go live, by parts that were fixed before, and
never among those that passed. No condition depends on an answer. What is lost: the errors among kept test answers are
no independent look at the promise any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.base.records import Record, fingerprint
from smallfirst.data.copies import count_rows
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.choice import Choice, WorthRule, choose_candidates, level_shares, shrunk_errors, would_pass
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.path.diagnostics import find_split_leaks
from smallfirst.path.project.candidate_registry import candidate_names
from smallfirst.path.project.candidates import fitted_candidates
from smallfirst.path.project.languages import with_languages
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FINALISTS, Finalists, RunFolder
from smallfirst.path.project.task_file import RULES, SMALLEST, TaskFile
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.looks import ALONE, LARGE, SharedLook, mark_read, read_before, text_fingerprints
from smallfirst.routing.certificate.threshold_search import expected_share
from smallfirst.routing.languages import detect_language

CHOOSING = "choosing"
"""Name of the split of out-of-fold answers in a run folder."""
MAX_FINALISTS = 3
"""Candidates that test rows are asked about: each more takes a part of the level from the others."""
FIXED = "fixed_before_test.json"
"""File of the FixedBeforeTest in a run folder."""
LOOKS = "looks.json"
"""File in the task's folder: the certificates that were tried, of all runs, and the test rows that were read."""
MORE_ROWS, LITTLE = 2 ** np.arange(8), 0.1
"""So many times the rows that certify are assumed, the fewest with which some plan keeps at least so small a share.
Shares that differ by no more are alike: fixed on redraws of xsid, snips, banking77 and clinc150."""
_PROVE_NOTHING = {"small", "accuracy_within", "person", "usd_per_wrong_answer", "monitor", "judge"}
"""Settings of `routing` without a part in what is promised."""


def chosen_by(run_folder: RunFolder, candidate: str) -> Evaluation | None:
    """Return what a candidate is chosen by; None if it was not measured."""
    return run_folder.evaluation(candidate, CHOOSING) or run_folder.evaluation(candidate, "selection")


def choosing_evaluations(run_folder: RunFolder) -> list[Evaluation]:
    """Return what the candidates that may go live are chosen by, the smallest first."""
    return [one for name in candidate_names() if (one := chosen_by(run_folder, name))]


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


def fix_finalists(project: Project, run_folder: RunFolder) -> Finalists:
    """Return the finalists of a run with their shares of the gate's level; choose and save them if nobody has.

    Call it before a test row is read: those that are expected to meet the gate come first, by worth, then the most
    accurate; one that task.yaml names before all. Where no candidate may answer every request, each is worth what its
    plan is. Naming another candidate later chooses anew.
    """
    file, saved = project.file, run_folder.find(Finalists, FINALISTS)
    if saved is not None and file.goes_live in (*RULES, *saved.names):
        return saved
    measured, leaks = choosing_evaluations(run_folder), find_split_leaks(project, run_folder)
    n_test = sum(row.key not in leaks.keys for row in project.rows.test.examples)
    expected = {one.candidate: would_pass(file.gate, one, n_test) for one in measured}
    if _by_plan(file):
        large = _large(run_folder) if _by_large(file) else None
        ordered = _order_plans(file, plan_options(measured, *_certifying(project), large), measured, large)
        names = sorted((one.candidate for one in ordered), key=lambda name: file.sets_gate and not expected[name])
    else:
        options = [Choice.alone(one) for one in measured]
        names = choose_candidates(options, _worth_rule(file), expected=expected.__getitem__)
    names += [name for name in candidate_names() if name not in names and run_folder.evaluation(name, "test")]
    names.sort(key=lambda name: name != file.goes_live)
    found = Finalists(names=tuple(names[:MAX_FINALISTS]), shares=level_shares(names[:MAX_FINALISTS]))
    found.save(run_folder.path / FINALISTS)
    return found


def expected_plans(project: Project, run_folder: RunFolder, *, instead_of: str = "") -> list[Choice]:
    """Return a plan for each finalist that was measured on calibration rows, by worth, the best first.

    `instead_of` is a candidate that may answer alone: only the plans of less expected loss are left, which takes a
    declared price of a wrong answer and a known one of the large model.
    """
    rule, large, file = _worth_rule(project.file)._replace(alike=1.0), _large(run_folder), project.file
    finalists = fix_finalists(project, run_folder).names
    measured = [one for one in choosing_evaluations(run_folder) if one.candidate in finalists]
    named = [one for one in measured if file.goes_live in (*RULES, one.candidate)]
    able = [one for one in named if run_folder.evaluation(one.candidate, "calibration")]
    options = plan_options(able, *_certifying(project), large)
    if not instead_of:
        return _order_plans(file, options, able, large)
    alone = [Choice.alone(one) for one in measured if one.candidate == instead_of]
    if rule.usd_per_wrong_answer is None or large is None or not alone or file.binds_answers:
        return []
    ordered = rule.order([*alone, *options])
    return ordered[: ordered.index(alone[0])]


def plan_options(
    measured: Sequence[Evaluation], guarantee: Guarantee, n_rows: Mapping[str, int], large: Evaluation | None = None
) -> list[Choice]:
    """Return a plan for each candidate: it keeps as many of its most confident answers as its certificate, on average.

    `n_rows`: rows that certify, by the language that is told, or under "" where one promise is about all. Of too few
    to show anything, as many times more are assumed as do; without a limit on errors as many stay as are right.
    Without a price of the large model an escalated request costs 1 USD, more than any small answer, and is right.
    """
    price, error = (1.0, 0.0) if large is None else (large.cost_usd_per_1k / 1000, 1 - large.accuracy.value)
    answers = [_by_language(one, guarantee) for one in measured]
    kept = [dict.fromkeys(own, one.accuracy.value) for one, own in zip(measured, answers, strict=True)]
    for times in MORE_ROWS if guarantee.max_error is not None else ():
        more = {name: int(times) * n for name, n in n_rows.items()}
        kept = [_expected_shares(own, guarantee, more) for own in answers]
        if max((share for one in kept for share in one.values()), default=1.0) >= LITTLE:
            break
    options = []
    for one, own, shares in zip(measured, answers, kept, strict=True):
        n_kept = {language: round(shares.get(language, 0.0) * len(rows)) for language, rows in own.items()}
        wrong = {
            row.key: float(not row.correct) if i < n_kept[language] else error
            for language, rows in own.items()
            for i, row in enumerate(rows)
        }
        share = sum(shares.get(name, 0.0) * n for name, n in n_rows.items()) / max(1, sum(n_rows.values()))
        options.append(Choice(one.candidate, one.cost_usd_per_1k / 1000 + (1 - share) * price, wrong))
    return options


def _by_language(measured: Evaluation, guarantee: Guarantee) -> dict[str, list[EvaluatedRow]]:
    """Return the answers, the most confident first, by the language that is told; under "" if it counts for nothing."""
    found = dict[str, list[EvaluatedRow]]()
    for row in sorted(measured.rows, key=lambda row: -(row.confidence or 0.0)):
        found.setdefault(detect_language(row.text) if guarantee.languages else "", []).append(row)
    return found


def _expected_shares(
    answers: Mapping[str, Sequence[EvaluatedRow]], guarantee: Guarantee, n_rows: Mapping[str, int]
) -> dict[str, float]:
    """Return the share that a certificate on so many rows keeps on average, by language."""
    groups = guarantee.languages or ("",)
    level = LARGE * (1 - guarantee.confidence) / (guarantee.n_limits * len(groups))
    found = dict[str, float]()
    for name in groups:
        rows = answers.get(name, ())
        right = np.array([row.correct for row in rows], dtype=bool)
        scores = np.array([row.confidence or 0.0 for row in rows])
        found[name] = expected_share(scores, right, n_rows.get(name, 0), guarantee.limits["error"], level)
    return found


def _certifying(project: Project) -> tuple[Guarantee, dict[str, int]]:
    """Return the guarantee, and how many rows certify it, by language; neither an answer nor a test row is read."""
    guarantee, rows = with_languages(project), project.rows.calibration.examples
    n = Counter(detect_language(row.text) if guarantee.languages else "" for row in rows)
    times = 1 + len(project.rows.test) / max(1, len(rows)) if project.file.data.one_source else 1.0
    return guarantee, {name: round(times * of) for name, of in n.items()} or {"": 1}


def _by_plan(file: TaskFile) -> bool:
    """Return True if no candidate may answer every request: its plan goes live, or nothing."""
    return file.binds_answers or not file.sets_gate or file.gate.accuracy_at_least == 1


def _by_large(file: TaskFile) -> bool:
    """Return True if finalists are ranked by the large model's error, which calibration rows tell."""
    return _by_plan(file) and file.routing.usd_per_wrong_answer is not None


def _order_plans(
    file: TaskFile, plans: Sequence[Choice], measured: Sequence[Evaluation], large: Evaluation | None
) -> list[Choice]:
    """Return the plans, which all keep the promise: the cheapest first, unless errors have a price.

    Of those that are expected to keep LITTLE less at most the first is of the most accurate candidate: that says more
    about what it will keep than few rows say of its confident answers.
    """
    if (rule := _worth_rule(file)).usd_per_wrong_answer is not None:
        return rule._replace(alike=1.0).order(plans)
    little = LITTLE * (1.0 if large is None else large.cost_usd_per_1k / 1000)
    rest = list(zip(shrunk_errors([Choice.alone(one) for one in measured]), plans, strict=True))
    ordered = list[Choice]()
    while rest:
        most = min(plan.usd for _, plan in rest) + little
        best = min((pair for pair in rest if pair[1].usd <= most), key=lambda pair: (pair[0], pair[1].usd))
        rest.remove(best)
        ordered.append(best[1])
    return ordered


def _worth_rule(file: TaskFile) -> WorthRule:
    if file.routing.small == SMALLEST:
        return WorthRule(accuracy_within=1.0)
    return WorthRule(file.routing.accuracy_within, file.routing.usd_per_wrong_answer)


def _large(run_folder: RunFolder) -> Evaluation | None:
    """Return the large model on calibration rows; None if it was not asked or has no price."""
    found = run_folder.evaluation("large", "calibration")
    return found if found is not None and found.cost_usd_per_1k > 0 else None


class FixedBeforeTest(Record):
    """Who may go live with which promise, fixed before a test row was read."""

    parts: dict[str, float]
    """By candidate that may go live: the part of a look that its certificate takes, in (0, 1]; they sum to 1."""
    promise: str
    """Fingerprint of the rows and of the settings that say what is promised about which requests."""


class JoinedRows(NamedTuple):
    """Which rows certify a candidate."""

    rows: Dataset
    """Calibration rows, then the test rows that certify with them."""
    n_test: int = 0
    """How many of them are test rows."""
    look: SharedLook = ALONE
    """The look that all fixed candidates divide; the whole of one where no test row certifies."""
    why_not: str = ""
    """Why test rows do not certify; empty if they do."""

    @property
    def in_words(self) -> str:
        """What the promise rests on."""
        if self.why_not:
            return f"test rows did not certify: {self.why_not}"
        return (
            f"{self.n_test} of its {len(self.rows)} rows are test rows, which the gate reads too: it takes "
            f"{self.look.part:.3g} of a look that is divided among all candidates fixed before a test row was read"
        )


def fix_before_test(project: Project, run_folder: RunFolder) -> None:
    """Save which candidates may go live with which promise, before this run reads a test row; a second call does not.

    The test rows count as read by this run from now on.
    """
    path = run_folder.path / FIXED
    if not path.exists() and not any((run_folder.path / "evaluations").glob("*-test.json")):
        fitted = [one.name for one in fitted_candidates(project, run_folder)]
        # Plans are ranked by the large model's error on calibration rows: parts by that rank would depend on them.
        ranked = _by_large(project.file) and run_folder.evaluation("large", "calibration") is not None
        finalists = None if ranked else run_folder.find(Finalists, FINALISTS)
        shares = finalists.shares if finalists else dict.fromkeys(fitted, 1.0)
        parts = {name: share / sum(shares.values()) for name, share in shares.items()}
        FixedBeforeTest(parts=parts, promise=_promise(project)).save(path)
    mark_read(run_folder.path.parent / LOOKS, run_folder.path.name, _texts(project.rows.test))


def find_joined(project: Project, run_folder: RunFolder, candidate: str) -> JoinedRows:
    """Return the rows that certify `candidate`: with test rows where every condition holds.

    Of these one row counts for each text, near-copy and group, and none that stands in any other part, or that an
    earlier run has read: its report may have shown it.
    """
    rows, file, fixed = project.rows, project.file, run_folder.find(FixedBeforeTest, FIXED)
    answered = [run_folder.evaluation(name, "test") for name in (candidate, *file.routing.ahead)]
    read = read_before(run_folder.path.parent / LOOKS, run_folder.path.name, _texts(rows.test))
    ours, theirs = ({example.source for example in part.examples} for part in (rows.calibration, rows.test))
    parts = fixed.parts if fixed else {}
    reasons = {
        "this candidate was not fixed before a test row was read": candidate not in parts,
        "the promise, the policies or the rows were changed after a test row was read": (
            fixed is not None and fixed.promise != _promise(project)
        ),
        "their labels come from another source than those of the calibration rows": (
            ours != theirs or (file.routing.labels == "large" and ours <= {""})
        ),
        "they are not split from the file of the calibration rows; data.exchangeable: true declares both alike": (
            not file.data.one_source
        ),
        "an earlier run has read them": read == _texts(rows.test),
        "the candidate was not measured on them": answered[0] is None,
    }
    if why_not := next((why for why, holds in reasons.items() if holds), ""):
        return JoinedRows(rows.calibration, why_not=why_not)
    own, _ = count_rows((rows.train, rows.selection, rows.calibration, rows.left_out), rows.test)
    keys = set.intersection(*(set(one.by_key) if one else set() for one in answered))
    test = tuple(e for e in own.examples if e.key in keys and not text_fingerprints([e.text]) & read)
    names = ", ".join(f"{name} {part:.3g}" for name, part in parts.items())
    look = SharedLook(f"{run_folder.path.name}: {names}", parts[candidate])
    return JoinedRows(rows.calibration.subset("calibration", (*rows.calibration.examples, *test)), len(test), look)


def _promise(project: Project) -> str:
    routing = project.file.routing.model_dump(mode="json", exclude=_PROVE_NOTHING)
    parts = [part.content_fingerprint for part in (project.rows.calibration, project.rows.test)]
    return fingerprint([routing, *parts])


def _texts(rows: Dataset) -> set[str]:
    return text_fingerprints(example.text for example in rows.examples)
