"""The last lines of a run: who answers, how well and at what cost, and for each outcome the commands that come next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from smallfirst.base.errors import DataError, DiskFull, GateFailed, ModelError, SmallfirstError, TrainingError
from smallfirst.base.records import Record
from smallfirst.data.row_formats import to_row
from smallfirst.measuring.evaluate import Evaluation, MeasuredFigures
from smallfirst.measuring.outcome import Outcome
from smallfirst.measuring.verdict import nearest_to_passing
from smallfirst.models.pricing import format_usd
from smallfirst.path.durations import model_bytes
from smallfirst.path.finalists import no_finalists
from smallfirst.path.project.candidate_registry import CANDIDATES, all_candidates
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import (
    CERTIFICATE,
    DOMAIN,
    OUTCOME,
    PROMOTED,
    VERDICTS,
    DomainCounts,
    FittedCandidates,
    GateVerdicts,
    Promotion,
    RunFolder,
)
from smallfirst.path.project.task_file import RULES, TaskFile
from smallfirst.registry import versions
from smallfirst.routing.certificate.certificate import Certificate

EXIT_STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""
MAX_QUESTION_CHARS = 400
"""Longest row that is shown as an example request."""


class RunRecord(Record):
    """What a run has reached: every output that tells of it reads this."""

    gate: GateVerdicts = GateVerdicts(verdicts=(), winner=None)
    """The gate's verdicts on each candidate alone, and on the plans that were tried."""
    outcome: Outcome | None = None
    """What the run decided; None if it did not get that far."""
    certificate: Certificate | None = None
    """The Router's certificate; None if nothing was certified."""
    promoted: Promotion | None = None
    """The version that went live; None if none did."""
    domain: DomainCounts | None = None
    """What the domain check refuses; None if none is served."""
    minutes: dict[str, float] = {}
    """Minutes that each candidate took to fit, by name."""
    left_out: dict[str, str] = {}
    """Why each candidate that was not fitted, or is no finalist, was left out, by name."""


def read_run(run_folder: RunFolder) -> dict[str, Any]:
    """Return the fields of a RunRecord from the files that the stages of a run wrote."""
    fitted = run_folder.fitted() or FittedCandidates(ladder=())
    kinds: dict[str, tuple[type[Record], str]] = {
        "gate": (GateVerdicts, VERDICTS),
        "outcome": (Outcome, OUTCOME),
        "certificate": (Certificate, CERTIFICATE),
        "promoted": (Promotion, PROMOTED),
        "domain": (DomainCounts, DOMAIN),
    }
    found = {name: record for name, (kind, file) in kinds.items() if (record := run_folder.find(kind, file))}
    return {**found, "minutes": fitted.minutes, "left_out": fitted.left_out | no_finalists(run_folder)}


class PathSummary(MeasuredFigures):
    """One path measured on test rows."""

    share: float
    """Share of requests that stay small, in [0, 1]; 1 for every path but the Router."""
    model_mb: float | None = None
    """Size of its weights in MB (10⁶ bytes), about what it takes in memory; None if they are not here."""

    @property
    def recorded(self) -> bool:
        return self.requests_per_s is None


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


class NextStep(Record):
    """One thing to do next."""

    what: str
    """What it does or why, in words."""
    command: str = ""
    """Command to paste; empty where a person has to do something first."""

    @property
    def lines(self) -> tuple[str, ...]:
        return (f"{self.what}:", f"  {self.command}") if self.command else (self.what,)


class RunSummary(RunRecord):
    """Everything that the last lines of a run show; for a run that failed, what it reached and its error."""

    task: str
    error: RunError | None = None
    """The error that ended the run; None if it succeeded."""
    paths: dict[str, PathSummary] = {}
    """Every measured path by name: `large`, the candidates from the smallest, and `routed`."""
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
    measured = {name: one for name in names if (one := run_folder.evaluation(name, "test"))}
    report = run_folder.path / "report.html"
    return RunSummary(
        **read_run(run_folder),
        task=file.name,
        error=ended,
        paths={name: _path_summary(evaluation, run_folder) for name, evaluation in measured.items()},
        report=str(report) if report.exists() or not error else "",
    )


def format_summary(summary: RunSummary) -> str:
    """Return the summary as a table and a few sentences for the terminal."""
    titles = {candidate.name: candidate.title for candidate in all_candidates()} | {
        name: name for name in ("large", "routed")
    }
    titles |= {name: f"{titles[name]} (recorded)" for name in summary.paths if summary.paths[name].recorded}
    width = max((len(titles[name]) for name in summary.paths), default=0) + 1
    lines = [f"{'':<{width}} {'accuracy':<24} {'cost / 1k requests':<20} {'p50':>9} {'per s':>7} {'model':>8}   share"]
    for name, path in summary.paths.items():
        share = f"{100 * path.share:.0f} %" + (" small" if name == "routed" else "")
        rate = "–" if path.recorded else f"{path.requests_per_s:,.0f}"
        size = "–" if path.model_mb is None else f"{max(1, path.model_mb):,.0f} MB"
        lines.append(
            f"{titles[name]:<{width}} {path.accuracy!s:<24} {format_usd(path.cost_usd_per_1k):<20} "
            f"{path.p50_ms:>6.0f} ms {rate:>7} {size:>8}   {share}"
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
        parts.append(f"{'certificate' if certificate.issued else 'no certificate'}: {certificate.report.why}")
    lines.append(" · ".join(parts))
    lines += summary.domain.in_words if summary.domain else []
    if outcome and outcome.live_as and summary.gate.winner not in (None, outcome.candidate):
        lines.append(f"by the gate alone: {summary.gate.winner} — consider it (routing.small)")
    return lines + [f"{name} left out: {why}" for name, why in summary.left_out.items()]


def _path_summary(evaluation: Evaluation, run_folder: RunFolder) -> PathSummary:
    small = sum(evaluation.stays_small) / max(1, len(evaluation.rows))
    model_mb = None
    if evaluation.candidate in CANDIDATES.names():
        model_mb = model_bytes(run_folder.model_folder(evaluation.candidate)) / 1e6 or None
    outcome = run_folder.find(Outcome, OUTCOME)
    if outcome is not None and outcome.counted != "requests" and outcome.share_small:
        small = outcome.share_small.value
    measured = {name: getattr(evaluation, name) for name in MeasuredFigures.model_fields}
    return PathSummary(share=small if evaluation.candidate == "routed" else 1.0, model_mb=model_mb, **measured)


def next_steps(
    project: Project | None, run_folder: RunFolder | None, error: BaseException | None, *, task: str = "task.yaml"
) -> tuple[NextStep, ...]:
    """Return what to do after a run that ended with `error` or well, the best first.

    `task` is the task as the user named it. After an error that says itself what to do there are no steps.
    """
    steps: Iterable[NextStep] = ()
    if isinstance(error, DataError):
        look = NextStep(what="see what is wrong with the rows, and where", command=f"smallfirst check {task}")
        steps = look, NextStep(what=f"mend them or label more, then: smallfirst run {task}")
    elif project is not None and isinstance(error, KeyboardInterrupt | ModelError | TrainingError | DiskFull):
        when = "when the large model answers again" if isinstance(error, ModelError) else "to continue"
        what = f"{when}; what was trained, measured or asked is kept"
        without = "or leave large: out of task.yaml: the small models are then judged by the rows alone"
        asked = isinstance(error, ModelError) and project.file.large is not None
        resume = NextStep(what=what, command=f"smallfirst run {task} --resume")
        steps = (resume, *([NextStep(what=without)] if asked else []))
    elif project is None or run_folder is None:
        pass
    elif type(error) is GateFailed and (verdicts := run_folder.find(GateVerdicts, VERDICTS)):
        steps = after_gate(project, run_folder, verdicts, task=task)
    elif error is None and (outcome := run_folder.find(Outcome, OUTCOME)):
        steps = after_outcome(project, outcome, task=task)
    return tuple(steps)


def after_gate(
    project: Project, run_folder: RunFolder, gate: GateVerdicts, *, task: str = "task.yaml"
) -> Iterator[NextStep]:
    """Yield what to do after the gate has said no to the candidate that was to go live."""
    named, outcome = project.file.goes_live, run_folder.find(Outcome, OUTCOME)
    if gate.winner not in (None, named) and named not in RULES and project.file.sets_gate:
        what = f"{gate.winner} passes: let it go live in place of {named}"
        yield NextStep(what=what, command=f"smallfirst promote {task} --candidate {gate.winner}")
        return
    if outcome is None:
        what = "no candidate may go live alone: see which part of the requests can stay small"
        yield NextStep(what=what, command=f"smallfirst calibrate {task}")
    elif outcome.gate_line or outcome.alias == versions.SHADOW:
        yield from after_outcome(project, outcome, task=task)
        return
    elif outcome.labels_needed is not None:
        yield NextStep(what=f"label {outcome.labels_needed.in_words}, then: smallfirst run {task}")
    best = nearest_to_passing(gate.verdicts)
    failed = sorted(best.failed_checks, key=lambda check: check.shortfall, reverse=True)
    if not failed or project.file.may_have_no_answer:  # none of its models answers every request
        return
    first = next((check for check in failed if check.more_rows is None), failed[0])
    advice = first.advice[:1].upper() + first.advice[1:] + "." if first.more_rows is None and first.advice else ""
    advice = advice if project.rows.test.examples else "Label more rows: there is no test row."
    nearest = f"{best.candidate} comes nearest; furthest off is {first.requirement}, measured {first.measured}."
    yield NextStep(what=f"{nearest} {advice}".strip())
    if project.task.closed:
        what = "look for wrong labels among the training rows"
        yield NextStep(what=what, command=f"smallfirst review {task} --labels suspects.jsonl")
    what = "or sign for it with a name and a reason, which stay on record"
    signed = f"smallfirst override {task} --candidate {best.candidate} --by NAME --because REASON"
    yield NextStep(what=what, command=signed)


def after_outcome(project: Project, outcome: Outcome, *, task: str = "task.yaml") -> Iterator[NextStep]:
    """Yield how to serve what is live, how to let it go live, or what is missing for that."""
    replay = " --replay-large" if project.file.large and project.file.large.recorded else ""
    serve, promote = f"smallfirst serve {task}{replay}", f"smallfirst promote {task}"
    served = outcome.live_as or outcome.alias == versions.SHADOW
    if outcome.live_as:
        yield NextStep(what=f"serve it: {outcome.in_short}", command=serve)
    elif outcome.goes_live:
        yield NextStep(what=f"let it go live: {outcome.in_short}", command=promote)
    elif outcome.gate_line:
        yield NextStep(what=f"{outcome.gate_missing} Then", command=promote)
    elif served:
        what = "serve it meanwhile: the large model answers, the small one drafts beside it"
        yield NextStep(what=what, command=serve)
    if served:
        yield NextStep(what="ask it one of your rows", command=_curl(project))
    if outcome.labels_needed is not None and not outcome.promise:
        what = "have a promise about single answers" if outcome.goes_live else "have it decided"
        yield NextStep(what=f"to {what}, label {outcome.labels_needed.in_words}, then: smallfirst run {task}")
    elif outcome.why and not outcome.promise and not outcome.gate_line:
        yield NextStep(what=f"no number of rows like these is likely to give a promise: {outcome.why}")


def _curl(project: Project) -> str:
    examples = project.rows.test.examples or project.rows.train.examples
    shortest = min(examples, key=lambda example: (len(example.text), example.text))
    asked: dict[str, Any] = {}
    if project.file.may_have_no_answer:
        due = [example for example in examples if example.answer != project.task.no_answer]
        asked = to_row(min(due, key=lambda example: (len(example.text), example.text), default=shortest))
        asked["messages"].pop()
    else:
        asked["messages"] = [{"role": m.role, "content": m.content[:MAX_QUESTION_CHARS]} for m in shortest.messages]
    body = json.dumps({"model": project.file.name, **asked}, ensure_ascii=False)
    return f"curl -s localhost:8000/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}"


def hint_of(error: SmallfirstError, steps: Iterable[NextStep]) -> str | None:
    """Return the error's own hint with the steps below it."""
    lines = [*([error.hint] if error.hint else []), *(line for step in steps for line in step.lines)]
    return "\n        ".join(lines) or None
