"""The answer to the only question that matters, as a record and as a table: who answers, how well, at what price."""

from __future__ import annotations

from smallfirst.evaluation.results import Evaluation
from smallfirst.project.run_folder import GateVerdicts, Promotion, RunFolder
from smallfirst.project.task_file import TaskFile
from smallfirst.records import Record
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import Estimate


class OpenEndedRouting(Record):
    """What the Router did with open-ended requests it had not seen."""

    n_requests: int
    """How many were asked."""
    n_to_large: int
    """How many went to the large model."""


class PathSummary(Record):
    """One path in figures, on test rows."""

    model: str
    """Who answers."""
    accuracy: Estimate
    """Share of right answers."""
    measures: dict[str, Estimate] = {}
    """The task's own figures by name."""
    cost_usd_per_1k: float
    """USD for 1,000 requests."""
    p50_ms: float
    """Median latency of one request."""
    p95_ms: float
    """95th percentile."""
    requests_per_s: float | None
    """With all rows in flight; None for recorded answers."""
    share: float
    """Share of requests the path's own model answers: 1 but for the Router, where it is the share kept small."""
    note: str
    """What a reader must know."""


class RunSummary(Record):
    """Everything the last lines of a run say."""

    task: str
    """Task name."""
    large: PathSummary | None = None
    """The large model on everything."""
    linear: PathSummary | None = None
    """Words + linear."""
    encoder: PathSummary | None = None
    """Frozen encoder + linear."""
    tuned: PathSummary | None = None
    """The fine-tuned encoder."""
    base: PathSummary | None = None
    """The untouched base model."""
    small: PathSummary | None = None
    """The fine-tuned model on everything."""
    routed: PathSummary | None = None
    """The Router."""
    gate: GateVerdicts
    """The gate's answers."""
    certificate: Certificate | None = None
    """The promise."""
    promise_held: bool | None = None
    """Whether kept test answers were wrong at most as often as promised; None without kept answers."""
    kept_wrong: int = 0
    """Kept test answers that were wrong."""
    kept: int = 0
    """Kept test answers."""
    promoted: Promotion | None = None
    """What went live."""
    open_ended: OpenEndedRouting | None = None
    """The Router on open-ended requests."""
    report: str
    """Path of the report."""


def summarize_run(file: TaskFile, run_folder: RunFolder) -> RunSummary:
    """The outcome of a run from what its stages have left."""
    names = {"linear": "words", **{name: name for name in ("large", "encoder", "tuned", "base", "small")}}
    paths = {key: _figures(run_folder.evaluation(name, "test")) for key, name in names.items()}
    routed = run_folder.evaluation("routed", "test")
    kept = [row for row in routed.rows if row.certified] if routed else []
    wrong = sum(not row.correct for row in kept)
    there = {path.name for path in run_folder.folder.iterdir()}
    certificate = run_folder.certificate() if "certificate.json" in there else None
    return RunSummary(
        task=file.name,
        **paths,
        routed=_figures(routed),
        gate=run_folder.verdicts(),
        certificate=certificate,
        promise_held=wrong / len(kept) <= certificate.promised_error if kept and certificate else None,
        kept_wrong=wrong,
        kept=len(kept),
        promoted=run_folder.promoted() if "promoted.json" in there else None,
        open_ended=OpenEndedRouting.load(run_folder.folder / "open_ended.json") if "open_ended.json" in there else None,
        report=str(run_folder.folder / "report.html"),
    )


def table(outcome: RunSummary) -> str:
    """The outcome for a terminal."""
    names = {
        "large": "large (recorded)" if outcome.large and outcome.large.requests_per_s is None else "large",
        "linear": "words + linear",
        "encoder": "encoder + linear",
        "tuned": "encoder (tuned)",
        "base": "base (untouched)",
        "small": "small (fine-tuned)",
        "routed": "routed",
    }
    lines = [f"{'':<20} {'accuracy':<24} {'cost / 1k requests':<20} {'p50':>9}   share"]
    for key, title in names.items():
        figures: PathSummary | None = getattr(outcome, key)
        if figures is None:
            continue
        share = f"{figures.share:.0%}".replace("%", " %") + (" small" if key == "routed" else "")
        lines.append(
            f"{title:<20} {figures.accuracy!s:<24} {_usd(figures.cost_usd_per_1k):<20} "
            f"{figures.p50_ms:>6.0f} ms   {share}"
        )
    return "\n".join([*lines, *_sentences(outcome)])


def _sentences(outcome: RunSummary) -> list[str]:
    chosen = outcome.promoted.candidate if outcome.promoted else "small"
    passed = any(v.candidate == chosen and v.passed for v in outcome.gate.verdicts)
    words = [f"gate {'PASS' if passed else 'FAIL'}"]
    if outcome.promoted:
        words.append(f"promoted {outcome.promoted.name} version {outcome.promoted.version} @champion")
    if outcome.certificate:
        words.append(f"certificate: {outcome.certificate.why}")
    lines = [" · ".join(words)]
    if outcome.promise_held is not None:
        verb = "held" if outcome.promise_held else "did NOT hold"
        lines.append(f"promise {verb} on test rows: {outcome.kept_wrong} of {outcome.kept} kept answers wrong")
    if outcome.certificate and outcome.certificate.below == "keep":
        lines.append("doubtful requests stay small: the large model was measured to be no better on them")
    if outcome.open_ended:
        share = outcome.open_ended
        lines.append(f"open-ended requests sent to the large model: {share.n_to_large} of {share.n_requests}")
    if outcome.gate.smallest and outcome.gate.smallest != chosen:
        lines.append(f"smallest candidate that passes: {outcome.gate.smallest} — consider it (routing.small)")
    elif outcome.gate.smallest is None:
        lines.append("no small candidate passes: keep the API")
    return lines


def _figures(evaluation: Evaluation | None) -> PathSummary | None:
    if evaluation is None:
        return None
    return PathSummary(
        model=evaluation.model,
        accuracy=evaluation.accuracy,
        measures=evaluation.measures,
        cost_usd_per_1k=evaluation.cost_usd_per_1k,
        p50_ms=evaluation.p50_ms,
        p95_ms=evaluation.p95_ms,
        requests_per_s=evaluation.requests_per_s,
        share=1.0 - evaluation.share("large") - evaluation.share("person") if evaluation.candidate == "routed" else 1.0,
        note=evaluation.note,
    )


def _usd(value: float) -> str:
    return f"${value:.2f}" if value >= 1 else f"${value:.4f}" if value >= 0.001 else f"${value:.6f}"
