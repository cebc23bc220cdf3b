"""The answer to the only question that matters, as a record and as a table: who answers, how well, at what price."""

from __future__ import annotations

from smallfirst.evaluation.results import Evaluation
from smallfirst.pricing import format_usd
from smallfirst.project.candidates import FINE_TUNED, all_candidates
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
    paths: dict[str, PathSummary]
    """Every measured path by name: the large model as `large`, the candidates, the smallest first, the Router as
    `routed`."""
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
    """The summary of a run from what its stages have left."""
    names = ("large", *(candidate.name for candidate in all_candidates()), "routed")
    measured = {name: run_folder.evaluation(name, "test") for name in names}
    routed = measured["routed"]
    kept = [row for row in routed.rows if row.certified] if routed else []
    wrong = sum(not row.correct for row in kept)
    there = {path.name for path in run_folder.path.iterdir()}
    certificate = run_folder.certificate() if "certificate.json" in there else None
    return RunSummary(
        task=file.name,
        paths={name: _path_summary(evaluation) for name, evaluation in measured.items() if evaluation},
        gate=run_folder.verdicts(),
        certificate=certificate,
        promise_held=wrong / len(kept) <= certificate.max_error if kept and certificate else None,
        kept_wrong=wrong,
        kept=len(kept),
        promoted=run_folder.promoted() if "promoted.json" in there else None,
        open_ended=OpenEndedRouting.load(run_folder.path / "open_ended.json") if "open_ended.json" in there else None,
        report=str(run_folder.path / "report.html"),
    )


def table(summary: RunSummary) -> str:
    """The summary for a terminal."""
    titles = {candidate.name: candidate.title for candidate in all_candidates()} | {"routed": "routed"}
    if (large := summary.paths.get("large")) is not None:
        titles["large"] = "large (recorded)" if large.requests_per_s is None else "large"
    width = max(len(titles[name]) for name in summary.paths) + 1 if summary.paths else 0
    lines = [f"{'':<{width}} {'accuracy':<24} {'cost / 1k requests':<20} {'p50':>9}   share"]
    for name, path in summary.paths.items():
        share = f"{100 * path.share:.0f} %" + (" small" if name == "routed" else "")
        lines.append(
            f"{titles[name]:<{width}} {path.accuracy!s:<24} {format_usd(path.cost_usd_per_1k):<20} "
            f"{path.p50_ms:>6.0f} ms   {share}"
        )
    return "\n".join([*lines, *_sentences(summary)])


def _sentences(summary: RunSummary) -> list[str]:
    chosen = summary.promoted.candidate if summary.promoted else FINE_TUNED
    passed = any(v.candidate == chosen and v.passed for v in summary.gate.verdicts)
    words = [f"gate {'PASS' if passed else 'FAIL'}"]
    if summary.promoted:
        words.append(f"promoted {summary.promoted.name} version {summary.promoted.version} @champion")
    if summary.certificate:
        words.append(f"certificate: {summary.certificate.why}")
    lines = [" · ".join(words)]
    if summary.promise_held is not None:
        verb = "held" if summary.promise_held else "did NOT hold"
        lines.append(f"promise {verb} on test rows: {summary.kept_wrong} of {summary.kept} kept answers wrong")
    if summary.certificate and summary.certificate.below == "keep":
        lines.append("doubtful requests stay small: the large model was measured to be no better on them")
    if summary.open_ended:
        share = summary.open_ended
        lines.append(f"open-ended requests sent to the large model: {share.n_to_large} of {share.n_requests}")
    if summary.gate.smallest and summary.gate.smallest != chosen:
        lines.append(f"smallest candidate that passes: {summary.gate.smallest} — consider it (routing.small)")
    elif summary.gate.smallest is None:
        lines.append("no small candidate passes: keep the API")
    return lines


def _path_summary(evaluation: Evaluation) -> PathSummary:
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
