"""The summary of a run: who answers, how well and at what cost, as a record and as a table for the terminal."""

from __future__ import annotations

from smallfirst.evaluation.evaluate import Evaluation
from smallfirst.gate.outcome import Outcome
from smallfirst.pipeline.next_step import NextStep
from smallfirst.pipeline.plans.worth import no_finalists
from smallfirst.pricing.charge import format_usd
from smallfirst.project.candidate_registry import all_candidates
from smallfirst.project.run_folder import (
    CERTIFICATE,
    OUTCOME,
    PROMOTED,
    VERDICTS,
    FittedCandidates,
    GateVerdicts,
    Promotion,
    RunFolder,
)
from smallfirst.project.task_file import TaskFile
from smallfirst.records import Record
from smallfirst.report.data import OpenEndedRouting
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import Estimate

KEPT = "kept.json"
"""File of the KeptOnTest in a run folder."""
OPEN_ENDED = "open_ended.json"
"""File of what the Router did with open-ended requests that it was not fitted on."""
EXIT_STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


class KeptOnTest(Record):
    """What the certificate covers of all test rows, whether or not the large model was asked them."""

    n_rows: int
    """Test rows."""
    n_kept: int
    """Rows whose small answer the certificate covers."""
    n_wrong: int
    """Wrong answers among them."""


class PathSummary(Record):
    """One path measured on test rows."""

    model: str
    accuracy: Estimate
    """Share of correct answers."""
    measures: dict[str, Estimate] = {}
    """The task's other metrics by name."""
    cost_usd_per_1k: float
    """USD per 1,000 requests."""
    p50_ms: float
    """Median latency of one request."""
    p95_ms: float
    """95th percentile of the latency."""
    requests_per_s: float | None
    """Throughput with all rows in flight; None for recorded answers."""
    share: float
    """Share of requests that stay small, in [0, 1]; 1 for every path but the Router."""
    note: str
    """Remark of the evaluation, for example when answers were recorded."""


class RunError(Record):
    """The error that ended a run."""

    type: str
    """Class of the error, such as `GateFailed`."""
    message: str
    """The message with the next command."""
    exit_code: int
    """Exit code of the command line."""

    @classmethod
    def of(cls, error: BaseException) -> RunError:
        stopped = isinstance(error, KeyboardInterrupt)
        message = "stopped from the keyboard" if stopped else str(error)
        code = EXIT_STOPPED if stopped else getattr(error, "exit_code", 1)
        return cls(type=type(error).__name__, message=message, exit_code=code)


class RunSummary(Record):
    """Everything that the last lines of a run show; for a run that failed, what it reached and its error."""

    task: str
    error: RunError | None = None
    """The error that ended the run; None if it succeeded."""
    paths: dict[str, PathSummary] = {}
    """Every measured path by name: `large`, the candidates from the smallest, and `routed`."""
    minutes: dict[str, float] = {}
    """Minutes that each candidate took to fit, by name."""
    left_out: dict[str, str] = {}
    """Why each candidate that was not fitted, or is no finalist, was left out, by name."""
    outcome: Outcome | None = None
    """What the run decided; None if it did not get that far."""
    gate: GateVerdicts = GateVerdicts(verdicts=(), winner=None)
    """The gate's verdicts on each candidate alone."""
    certificate: Certificate | None = None
    """The Router's certificate; None if nothing was certified."""
    promoted: Promotion | None = None
    """The version that went live; None if none did."""
    open_ended: OpenEndedRouting | None = None
    """The Router on open-ended requests; None without such requests."""
    report: str = ""
    """Path of the report; empty if none was written."""
    next_steps: tuple[NextStep, ...] = ()
    """What to do next, the best first."""

    def __str__(self) -> str:
        return format_summary(self)


def summarize_run(file: TaskFile, run_folder: RunFolder | None, error: BaseException | None = None) -> RunSummary:
    """Return the summary of a run from the files that its stages wrote; `error` ended it."""
    ended = RunError.of(error) if error else None
    if run_folder is None:
        return RunSummary(task=file.name, error=ended)
    names = ("large", *(candidate.name for candidate in all_candidates()), "routed")
    measured = {name: run_folder.evaluation(name, "test") for name in names}
    certificate, report = run_folder.find(Certificate, CERTIFICATE), run_folder.path / "report.html"
    fitted = run_folder.fitted() or FittedCandidates(ladder=())
    return RunSummary(
        task=file.name,
        error=ended,
        minutes=fitted.minutes,
        left_out=fitted.left_out | no_finalists(run_folder),
        paths={name: _path_summary(evaluation) for name, evaluation in measured.items() if evaluation},
        outcome=run_folder.find(Outcome, OUTCOME),
        gate=run_folder.find(GateVerdicts, VERDICTS) or GateVerdicts(verdicts=(), winner=None),
        certificate=certificate,
        promoted=run_folder.find(Promotion, PROMOTED),
        open_ended=run_folder.find(OpenEndedRouting, OPEN_ENDED),
        report=str(report) if report.exists() or not error else "",
    )


def format_summary(summary: RunSummary) -> str:
    """Return the summary as a table and a few sentences for the terminal."""
    titles = {candidate.name: candidate.title for candidate in all_candidates()} | {"routed": "routed"}
    if (large := summary.paths.get("large")) is not None:
        titles["large"] = "large (recorded)" if large.requests_per_s is None else "large"
    width = max((len(titles[name]) for name in summary.paths), default=0) + 1
    lines = [f"{'':<{width}} {'accuracy':<24} {'cost / 1k requests':<20} {'p50':>9}   share"]
    for name, path in summary.paths.items():
        share = f"{100 * path.share:.0f} %" + (" small" if name == "routed" else "")
        lines.append(
            f"{titles[name]:<{width}} {path.accuracy!s:<24} {format_usd(path.cost_usd_per_1k):<20} "
            f"{path.p50_ms:>6.0f} ms   {share}"
        )
    return "\n".join([*lines, *_sentences(summary)])


def _sentences(summary: RunSummary) -> list[str]:
    outcome, certificate = summary.outcome, summary.certificate
    lines = [outcome.sentence] if outcome else []
    gates = {"passed": "PASS", "failed": "FAIL", "signed": "FAIL, signed for", "not written": "not in task.yaml"}
    confirmed = outcome and outcome.goes_live and summary.gate.confirmed
    parts = [f"gate {'PASS (small first)' if confirmed else gates[outcome.gate] if outcome else 'not decided'}"]
    if outcome and outcome.live_as:
        parts.append(f"promoted {outcome.live_as}")
    if certificate and certificate.issued and outcome and not outcome.promise:
        parts.append("a certificate was issued, and nothing goes live with it")
    elif certificate:
        parts.append(f"{'certificate' if certificate.issued else 'no certificate'}: {certificate.why}")
    lines.append(" · ".join(parts))
    if summary.open_ended:
        n_to_large, n = summary.open_ended.n_to_large, summary.open_ended.n_requests
        lines.append(f"open-ended requests sent to the large model: {n_to_large} of {n}")
    if outcome and outcome.live_as and summary.gate.winner not in (None, outcome.candidate):
        how = f" ({summary.gate.how_found})" if summary.gate.how_found else ""
        lines.append(f"by the gate alone: {summary.gate.winner}{how} — consider it (routing.small)")
    return lines + [f"{name} left out: {why}" for name, why in summary.left_out.items()]


def _path_summary(evaluation: Evaluation) -> PathSummary:
    small = sum(evaluation.stays_small) / max(1, len(evaluation.rows))
    measured = {name: getattr(evaluation, name) for name in PathSummary.model_fields if name != "share"}
    return PathSummary(**measured, share=small if evaluation.candidate == "routed" else 1.0)
