"""Evaluations in MLflow: their metrics and rows on the run of the training."""

from __future__ import annotations

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.registry.runs import TrackedRun, client


def log_evaluation(run_id: str, evaluation: Evaluation) -> str:
    """Store the whole evaluation as JSON and metrics; return its path inside the run.

    Raise SmallfirstError if the store refuses it.
    """
    run = TrackedRun(client(), run_id)
    metrics: dict[str, float | None] = {"n": evaluation.accuracy.n}
    for name, estimate in {"accuracy": evaluation.accuracy, **evaluation.measures}.items():
        metrics |= _with_ends(name, estimate)
    for name in ("cost_usd_per_1k", "p50_ms", "p95_ms", "requests_per_s"):
        metrics[name] = getattr(evaluation, name)
    run.log_metrics(0, {f"{evaluation.candidate}/{evaluation.split}/{name}": value for name, value in metrics.items()})
    if not run.flush():
        raise SmallfirstError(
            f"the metrics of {evaluation.candidate} were not written to run {run_id}",
            hint="see the warning above, then evaluate again",
        )
    return run.log_json(f"evaluations/{evaluation.candidate}-{evaluation.split}", evaluation)


def _with_ends(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}.low": estimate.low, f"{name}.high": estimate.high}
