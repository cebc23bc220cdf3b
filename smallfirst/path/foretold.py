"""What a run on these rows can be expected to show, before anything is trained.

The gate's own checks judge a model that is right on every test row: what it misses is out of reach of every model. How
likely the gate's accuracy and the guarantee are to be shown, and how many more rows they take, follows from the answers
of a linear model on words to rows that it did not learn (`models.linear.held_out`): a run's best candidate is taken to
make all of its errors at worst, and half of them at best. Where there is no such model, from no error to half of those
allowed. After a run on the same rows its own figure stands here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.base.errors import StageMissing
from smallfirst.base.paths import state_folder
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.base.stats.sample_size import (
    MAX_ROWS,
    RowsNeeded,
    chance_of_share,
    fewest_rows,
    min_rows_without_error,
    rows_for_error,
)
from smallfirst.data.dataset import Dataset, sample_rows
from smallfirst.data.findings import Finding, make_finding
from smallfirst.measuring.choice import level_shares
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Gate, run_checks
from smallfirst.measuring.outcome import LabelsNeeded, Outcome
from smallfirst.measuring.verdict import CheckResult
from smallfirst.models.linear.held_out import WORD_ERRORS, hold_out_labels
from smallfirst.path.evaluate import LIMITED_PROBE_ROWS
from smallfirst.path.plans.joined_rows import LOOKS
from smallfirst.path.plans.labels_needed import OpenQuestion, rows_to_label
from smallfirst.path.project.candidate_registry import promotable_names
from smallfirst.path.project.candidates import project_candidates
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import OUTCOME, RunFolder
from smallfirst.routing.certificate.looks import next_look, read_before, text_fingerprints

MOST_CASES = 1000
"""Training and selection rows of which the linear model on words answers each."""
MOST_FINALISTS = 3
"""So many candidates at most divide the level where test rows certify as well."""
_ASSUMED = 1000


class ThresholdForecast(Record):
    """What the test rows can show of one threshold."""

    name: str
    """Key of the threshold in task.yaml."""
    requirement: str
    n_rows: int
    """Test rows."""
    reachable: bool
    """False if not even a model without an error would pass."""
    n_wrong: int | None = None
    """Most wrong answers with which it is met; for `accuracy_at_least` only."""
    least_measured: float | None = None
    """The share of right answers that is left then, in [0, 1]."""
    why_not: str = ""
    """What would be measured of a model without an error; empty if it would pass."""
    advice: str = ""
    """What the gate would advise it; empty if it would pass, or if its rows are too few."""
    too_few: bool = False
    """More test rows would do for a model without an error."""

    @property
    def in_words(self) -> str:
        start = f"{self.n_rows:,} test rows show {self.requirement}"
        if self.least_measured is not None:
            return f"{start} only from a measured {self.least_measured:.3f} ({self.n_wrong:,} wrong at most)"
        if self.reachable:
            return f"{start} if the model is good enough"
        return f"{self.requirement} is out of reach: {self.why_not}"


class CertificateForecast(Record):
    """What the calibration rows can show of the guarantee."""

    guarantee: str
    n_rows: int
    """Rows that count: calibration rows, and test rows where they certify too."""
    n_test: int = 0
    """How many of them are test rows."""
    level: float
    """Error probability that the next certificate tried on them spends."""
    n_without_error: int
    """Fewest accepted rows that show it if none is wrong."""

    @property
    def reachable(self) -> bool:
        """False if it is refused even without an error."""
        return self.n_rows >= self.n_without_error

    @property
    def in_words(self) -> str:
        test = f" and {self.n_test:,} test" if self.n_test else ""
        n = f"{self.n_rows - self.n_test:,} calibration{test} rows"
        if not self.reachable:
            return f"{n} cannot show {self.guarantee}, even without an error"
        return f"{n} show {self.guarantee} if, say, the {self.n_without_error:,} most confident answers are all right"


class RowsForecast(Record):
    """The chance that these rows decide gate and guarantee, and the rows that would, at two assumptions on errors."""

    assumption: str
    """In words, which errors are assumed at worst and at best."""
    right: Estimate | None
    """Share of right answers of the linear model on words; None without one."""
    chance_gate: tuple[float, float] | None
    """That these test rows show the gate's accuracy, at worst and at best; None if it is not asked for."""
    chance_certificate: tuple[float, float] | None
    """That these calibration rows show the guarantee, at worst and at best; None if that is not foretold."""
    most: LabelsNeeded | None
    """Rows that decide what is open, at worst; None if nothing is open, or if no number of rows is likely to."""
    fewest: LabelsNeeded | None
    """As `most`, at best."""
    of_run: LabelsNeeded | None = None
    """What the latest run on the same rows found; it stands in place of what was foretold."""

    @property
    def in_words(self) -> Iterator[str]:
        """Yield the lines for the terminal."""
        if self.of_run is not None:
            yield f"rows: the last run on these rows asks for {self.of_run.in_words}"
            return
        for name, chance in (("gate", self.chance_gate), ("certificate", self.chance_certificate)):
            if chance is not None:
                yield f"{name}: shown with these rows with a chance of {_span(*chance)}"
        if self.most or self.fewest:
            ends = [one.in_words for one in (self.fewest, self.most) if one]
            rows = " to ".join(dict.fromkeys(ends)) if self.most else f"{ends[0]}, or no number of rows"
            yield f"rows: {rows} would decide what is open"
        yield f"assumed: {self.assumption}"


def _span(low: float, high: float) -> str:
    ends = sorted({round(100 * low), round(100 * high)})
    return f"{' to '.join(map(str, ends))} %"


class _Assumed(NamedTuple):
    """Answers of a model as it may be."""

    confidence: np.ndarray
    right: np.ndarray


def forecast_gate(project: Project) -> tuple[ThresholdForecast, ...]:
    """Return a forecast for each threshold that depends on test rows; nothing without test rows."""
    gate, test = _asked_alone(project), project.rows.test
    if not test.examples:
        return ()
    level, large = _level(project), project.file.large
    asked = perfect_evaluation(project, sample_rows(test, large.sample("test")), cost_usd=1.0) if large else None
    inputs = CheckInputs(perfect_evaluation(project, test), level, asked, gate.part_rows)
    return tuple(_forecast(project, result, level) for result in run_checks(gate, inputs))


def forecast_certificate(project: Project) -> CertificateForecast | None:
    """Return what the calibration rows can certify; None where that is not foretold.

    That is where people's answers to some of the rows certify alone, or where errors are not what is limited.
    """
    guarantee, rows = project.file.routing.guarantee, project.rows.calibration
    if project.file.data.gold is not None or "error" not in guarantee.limits:
        return None
    looks, data = state_folder() / "tasks" / project.file.name / LOOKS, project.file.data
    own, test = (text_fingerprints(example.text for example in part.examples) for part in (rows, project.rows.test))
    n_test = len(test - read_before(looks, "", test)) if data.one_source else 0  # as `find_joined` decides
    share = next_look(looks, own | test if n_test else own).share
    n_finalists = min(MOST_FINALISTS, sum(one.promotable for one in project_candidates(project)))
    share /= max(1, n_finalists) if n_test else 1
    level = share * (1 - guarantee.confidence) / (guarantee.n_limits * (3 if project.file.routing.ahead else 1))
    n = len(rows) + n_test
    fewest = min_rows_without_error(guarantee.limits["error"], level) if level else n + 1
    words = guarantee.in_words
    return CertificateForecast(guarantee=words, n_rows=n, n_test=n_test, level=level, n_without_error=fewest)


def forecast_rows(project: Project, certificate: CertificateForecast | None) -> RowsForecast | None:
    """Return how likely these rows are to decide, and how many more would be; None if there is nothing to show."""
    bar, limit = _asked_alone(project).accuracy_at_least, project.file.routing.guarantee.max_error
    simple = certificate is not None and not project.file.routing.guarantee.per_group
    asked = None if not simple or limit is None else limit
    if bar is None and asked is None:
        return None
    cases, right = _held_out(project)
    spans: list[tuple[float | None, float | None, LabelsNeeded | None]] = []
    for left in (WORD_ERRORS[0], WORD_ERRORS[-1]):
        open_, chances = list[OpenQuestion](), list[float | None]([None, None])
        if bar is not None:
            model = _as_good(cases, left, 1 - bar)
            needed, chances[0] = _for_gate(project, model, bar)
            open_ += [OpenQuestion("test", needed, len(project.rows.test))] if needed.n_more else []
        if asked is not None and certificate is not None and certificate.level:
            model, n, level = _as_good(cases, left, asked), certificate.n_rows, certificate.level
            needed, now = (
                rows_for_error(model.confidence, model.right, asked, level, again=0.0, n_new=n, max_rows=most)
                for most in (MAX_ROWS, 0)
            )
            chances[1] = now.chance
            open_ += [OpenQuestion("calibration", needed, n)] if needed.n_more else []
        spans.append((chances[0], chances[1], rows_to_label(project, open_)))
    (gate, shown, most), (best_gate, best_shown, fewest) = spans
    assumption = "from half of the errors that are allowed to none, since nothing is known of the model yet"
    if right is not None:
        assumption = (
            f"from the errors of a linear model on words (right on {right} of {right.n} rows that it did not learn) to "
            "half of them"
        )
    return RowsForecast(
        assumption=assumption,
        right=right,
        chance_gate=None if gate is None or best_gate is None else (gate, best_gate),
        chance_certificate=None if shown is None or best_shown is None else (shown, best_shown),
        most=most,
        fewest=fewest,
        of_run=_of_last_run(project),
    )


def forecast_findings(
    gate: Sequence[ThresholdForecast], certificate: CertificateForecast | None, rows: RowsForecast | None
) -> Iterator[Finding]:
    """Yield a finding for each threshold that no model can reach with these rows, and for such a guarantee."""
    found = rows and (rows.of_run or rows.fewest)
    add = f"add {found.in_words}" if found else "add rows"
    for one in gate:
        if not one.reachable:
            advice = add if one.too_few else one.advice or "no number of rows like these would do"
            yield make_finding("fix", f"gate: {one.in_words}", f"{advice}; or change {_setting(one.name)}", n=1)
    if certificate is not None and not certificate.reachable:
        yield make_finding("fix", f"certificate: {certificate.in_words}", f"{add}; or change routing.guarantee", n=1)


def _held_out(project: Project) -> tuple[_Assumed | None, Estimate | None]:
    """Return the answers of the linear model on words to rows that it did not learn; None for open answers."""
    rows = project.rows.train.subset("held out", (*project.rows.train.examples, *project.rows.selection.examples))
    examples = sample_rows(rows, MOST_CASES).examples
    if not project.task.closed or len({example.answer for example in examples}) < 2:
        return None, None
    found = hold_out_labels([example.text for example in examples], [example.answer for example in examples])
    return _Assumed(found.confidence, found.right), wilson(int(found.right.sum()), len(found.right))


def _as_good(cases: _Assumed | None, left: float, allowed: float) -> _Assumed:
    """Return the answers with a share `left` of their errors; without any, with `allowed` errors less as many."""
    luck = np.random.default_rng(0).random(len(cases.right) if cases else _ASSUMED)
    if cases is not None:
        return cases._replace(right=cases.right | (luck >= left))
    at_worst = left == WORD_ERRORS[0]
    return _Assumed(luck, np.arange(_ASSUMED) % round(2 / allowed) > 0 if at_worst else np.ones(_ASSUMED, dtype=bool))


def _for_gate(project: Project, model: _Assumed, bar: float) -> tuple[RowsNeeded, float]:
    """Return the rows that the gate's accuracy takes, and its chance with those that there are."""
    n, n_right, n_cases = len(project.rows.test), int(model.right.sum()), len(model.right)
    confidence = _level(project).confidence

    def chance(n_more: int) -> float:
        return chance_of_share(n_right, n_cases, n + n_more, bar, confidence=confidence, again=0.0)

    return fewest_rows(chance), chance(0)


def _asked_alone(project: Project) -> Gate:
    gate = project.file.gate
    if gate.accuracy_at_least == 1:  # no candidate is meant to go live alone
        return gate.model_copy(update={"accuracy_at_least": None})
    return gate


def _level(project: Project) -> ConfidenceLevel:
    """Return the level of the candidate that comes first on test rows."""
    names = [candidate.name for candidate in project_candidates(project) if candidate.promotable]
    return ConfidenceLevel(1 / max(level_shares(names).values(), default=1))


def _of_last_run(project: Project) -> LabelsNeeded | None:
    """Return what the latest run asks for, if it measured these test and calibration rows; None without one."""
    try:
        run_folder = RunFolder.latest(project.file.name)
    except StageMissing:
        return None
    for name in promotable_names():
        for part in ("test", "calibration"):
            measured = run_folder.evaluation(name, part)
            if measured is not None and measured.dataset_fingerprint != getattr(project.rows, part).content_fingerprint:
                return None
    outcome = run_folder.find(Outcome, OUTCOME)
    return outcome.labels_needed if outcome else None


def perfect_evaluation(project: Project, data: Dataset, *, cost_usd: float = 0.0) -> Evaluation:
    """Return the evaluation of a model that is right on all rows; nothing is asked, and no scorer is called."""
    rows = tuple(
        EvaluatedRow(
            key=example.key,
            text=example.text,
            gold=example.answer,
            also=example.also,
            answer=example.answer,
            score=1.0,
            correct=True,
            confidence=1.0,
            stage="perfect",
            certified=False,
            latency_ms=0.0,
            cost_usd=cost_usd,
        )
        for example in data.examples
    )
    n, limited = len(rows), project.file.gate.measures_at_most
    return Evaluation(
        candidate="a model without an error",
        model="",
        task=project.task.name,
        split="test",
        dataset_fingerprint=data.content_fingerprint,
        rows=rows,
        accuracy=wilson(n, n),
        measures={name: wilson(0 if name in limited else n, n) for name in project.task.measures(())},
        parts=project.task.parts([row.answered for row in rows]),
        cost_usd_per_1k=1000 * cost_usd,
        p50_ms=0.0,
        p95_ms=0.0,
        requests_per_s=None,
        probes_ms=(0.0,) * min(n, LIMITED_PROBE_ROWS),
    )


def _forecast(project: Project, result: CheckResult, level: ConfidenceLevel) -> ThresholdForecast:
    n = len(project.rows.test)
    found = ThresholdForecast(name=result.name, requirement=result.requirement, n_rows=n, reachable=result.passed)
    if not result.passed:
        of_whom = f" of a model without an error on {n:,} test rows" if result.estimate else ""
        advice = "" if result.estimate else result.advice
        update = {"why_not": f"{result.measured}{of_whom}", "advice": advice, "too_few": result.more_rows is not None}
        return found.model_copy(update=update)
    if result.name == "accuracy_at_least":
        n_wrong = _most_wrong(project.file.gate, n, level)
        return found.model_copy(update={"n_wrong": n_wrong, "least_measured": (n - n_wrong) / n})
    return found


def _most_wrong(gate: Gate, n: int, level: ConfidenceLevel) -> int:
    """Return how many of `n` rows may be wrong for the accuracy still to be shown, where none may be many."""
    least = gate.accuracy_at_least or 0.0
    return bisect_left(
        range(1, n + 1), True, key=lambda wrong: wilson(n - wrong, n, confidence=level.confidence).low < least
    )


def _setting(threshold: str) -> str:
    """Return where a threshold stands in task.yaml: a metric by its name is below measures_at_least or …_at_most."""
    if threshold.partition(".")[0] in Gate.model_fields:
        return f"gate.{threshold}"
    metric, _, end = threshold.rpartition("_at_")
    return f"gate.measures_at_{end}.{metric}"
