"""What the test rows can show of the gate's thresholds, before anything is trained.

The gate's own checks judge a model that is right on every test row, at once and for nothing, at the level of a
candidate that is alone to be confirmed. A threshold that it misses is out of reach of every model on these rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from smallfirst.data.dataset import Dataset, sample_rows
from smallfirst.data.quality.findings import Finding, make_finding
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.gate.check_result import CheckInputs, CheckResult, ConfidenceLevel
from smallfirst.gate.choice import level_shares
from smallfirst.gate.gate import Gate
from smallfirst.gate.limits import check_limits
from smallfirst.gate.metrics import check_metrics, check_per_class
from smallfirst.gate.paired import check_paired
from smallfirst.pipeline.evaluate import LIMITED_PROBE_ROWS
from smallfirst.pipeline.preflight.more_rows import MoreRows, more_rows
from smallfirst.project.candidates import project_candidates
from smallfirst.project.project import Project
from smallfirst.records import Record
from smallfirst.stats.intervals import wilson


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
    """What the gate would advise it; empty if it would pass."""
    missing: MoreRows | None = None
    """Rows that would do for a model without an error; None if it is reachable or no number is known to do."""

    @property
    def in_words(self) -> str:
        start = f"{self.n_rows:,} test rows show {self.requirement}"
        if self.least_measured is not None:
            return f"{start} only from a measured {self.least_measured:.3f} ({self.n_wrong:,} wrong at most)"
        if self.reachable:
            return f"{start} if the model is good enough"
        return f"{self.requirement} is out of reach: {self.why_not}"


def forecast_gate(project: Project) -> tuple[ThresholdForecast, ...]:
    """Return a forecast for each threshold that depends on test rows; nothing without test rows."""
    gate, test = project.file.gate, project.rows.test
    if not test.examples:
        return ()
    if gate.accuracy_at_least == 1:  # no candidate is meant to go live alone
        gate = gate.model_copy(update={"accuracy_at_least": None})
    names = [candidate.name for candidate in project_candidates(project) if candidate.promotable]
    level = ConfidenceLevel(1 / max(level_shares(names).values(), default=1))
    large = project.file.large
    asked = perfect_evaluation(project, sample_rows(test, large.sample("test")), cost_usd=1.0) if large else None
    inputs = CheckInputs(perfect_evaluation(project, test), level, asked)
    results = [
        result
        for check in (check_metrics, check_per_class, check_paired, check_limits)
        for result in check(gate, inputs)
    ]
    return tuple(_forecast(project, result, level) for result in results)


def gate_findings(forecasts: Sequence[ThresholdForecast]) -> Iterator[Finding]:
    """Yield a finding for each threshold that no model can reach with these rows."""
    for one in forecasts:
        if not one.reachable:
            advice = f"add {one.missing.in_words}" if one.missing else one.advice
            yield make_finding("fix", f"gate: {one.in_words}", f"{advice}; or change {_setting(one.name)}", n=1)


def _setting(threshold: str) -> str:
    """Return where a threshold stands in task.yaml: a metric by its name is below measures_at_least or …_at_most."""
    if threshold.partition(".")[0] in Gate.model_fields:
        return f"gate.{threshold}"
    metric, _, end = threshold.rpartition("_at_")
    return f"gate.measures_at_{end}.{metric}"


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
        missing = more_rows(project, "test", result.more_rows) if result.more_rows else None
        of_whom = f" of a model without an error on {n:,} test rows" if result.estimate else ""
        update = {"why_not": f"{result.measured}{of_whom}", "advice": result.advice, "missing": missing}
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
