"""What to do after a run: for each outcome the commands that work, and what only a person can do, in words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator

from smallfirst.errors import DataError, GateFailed, ModelError, SmallfirstError, TrainingError
from smallfirst.evaluation.learning_curve import LearningCurve, forecast
from smallfirst.gate.outcome import Outcome
from smallfirst.gate.verdict import Verdict, nearest_to_passing
from smallfirst.pipeline.diagnostics import LEARNING
from smallfirst.project.project import Project
from smallfirst.project.run_folder import OUTCOME, VERDICTS, GateVerdicts, RunFolder
from smallfirst.project.task_file import RULES
from smallfirst.records import Record
from smallfirst.registry import versions

MAX_QUESTION_CHARS = 400
"""Longest row that is shown as an example request."""


class NextStep(Record):
    """One thing to do next."""

    what: str
    """What it does or why, in words."""
    command: str = ""
    """Command to paste; empty where a person has to do something first."""

    @property
    def lines(self) -> tuple[str, ...]:
        return (f"{self.what}:", f"  {self.command}") if self.command else (self.what,)


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
    elif project is not None and isinstance(error, KeyboardInterrupt | ModelError | TrainingError):
        steps = _after_interruption(project, error, task)
    elif project is None or run_folder is None:
        pass
    elif type(error) is GateFailed and (verdicts := run_folder.find(GateVerdicts, VERDICTS)):
        steps = after_gate(project, run_folder, verdicts, task=task)
    elif error is None and (outcome := run_folder.find(Outcome, OUTCOME)):
        steps = after_outcome(project, outcome, task=task)
    return tuple(steps)


def _after_interruption(project: Project, error: BaseException, task: str) -> Iterator[NextStep]:
    when = "when the large model answers again" if isinstance(error, ModelError) else "to continue"
    yield NextStep(
        what=f"{when}; what was trained, measured or asked is kept", command=f"smallfirst run {task} --resume"
    )
    if isinstance(error, ModelError) and project.file.large is not None:
        yield NextStep(what="or leave large: out of task.yaml: the small models are then judged by the rows alone")


def after_gate(
    project: Project, run_folder: RunFolder, gate: GateVerdicts, *, task: str = "task.yaml"
) -> Iterator[NextStep]:
    """Yield what to do after the gate has said no to the candidate that was to go live."""
    named = project.file.goes_live
    if gate.winner not in (None, named) and named not in RULES and project.file.sets_gate:
        yield NextStep(
            what=f"{gate.winner} passes: let it go live in place of {project.file.goes_live}",
            command=f"smallfirst promote {task} --candidate {gate.winner}",
        )
        return
    best, outcome = nearest_to_passing(gate.verdicts), run_folder.find(Outcome, OUTCOME)
    if outcome is None:
        what = "no candidate may go live alone: see which part of the requests can stay small"
        yield NextStep(what=what, command=f"smallfirst calibrate {task}")
    elif outcome.gate_line or outcome.alias == versions.SHADOW:
        yield from after_outcome(project, outcome, task=task)
        return
    elif outcome.labels_needed is not None:
        yield NextStep(what=f"label {outcome.labels_needed.in_words}, then: smallfirst run {task}")
    if not best.failed_checks:
        return
    yield NextStep(what=" ".join(_what_to_label(project, run_folder, best)))
    if project.task.closed:
        yield NextStep(
            what="look for wrong labels among the training rows",
            command=f"smallfirst review {task} --labels suspects.jsonl",
        )
    yield NextStep(
        what="or sign for it with a name and a reason, which stay on record",
        command=f"smallfirst override {task} --candidate {best.candidate} --by NAME --because REASON",
    )


def _what_to_label(project: Project, run_folder: RunFolder, best: Verdict) -> Iterator[str]:
    """Yield sentences on the failed check that is furthest off, and on what would change it."""
    failed = sorted(best.failed_checks, key=lambda check: check.shortfall, reverse=True)
    first = next((check for check in failed if check.more_rows is None), failed[0])
    yield f"{best.candidate} comes nearest; furthest off is {first.requirement}, measured {first.measured}."
    if not project.rows.test.examples:
        yield "Label more rows: there is no test row."
    elif first.more_rows is None and first.advice:
        yield f"{first.advice[:1].upper()}{first.advice[1:]}{_forecast(project, run_folder, best.candidate)}."


def _forecast(project: Project, run_folder: RunFolder, candidate: str) -> str:
    curve = run_folder.find(LearningCurve, LEARNING)
    points = [p for p in curve.points if p.candidate == candidate] if curve else []
    found = forecast(points, 2 * len(project.rows.train)) if points else None
    return f" ({found.why})" if found is not None and found.accuracy is not None else ""


def after_outcome(project: Project, outcome: Outcome, *, task: str = "task.yaml") -> Iterator[NextStep]:
    """Yield how to serve what is live, how to let it go live, or what is missing for that."""
    replay = " --replay-large" if project.file.large and project.file.large.recorded else ""
    serve = f"smallfirst serve {task}{replay}"
    if outcome.live_as:
        yield NextStep(what=f"serve it: {outcome.in_short}", command=serve)
        yield NextStep(what="ask it one of your rows", command=_curl(project))
    elif outcome.goes_live:
        yield NextStep(what=f"let it go live: {outcome.in_short}", command=f"smallfirst promote {task}")
    elif outcome.gate_line:
        yield NextStep(what=f"{outcome.gate_missing} Then", command=f"smallfirst promote {task}")
    elif outcome.alias == versions.SHADOW:
        yield NextStep(
            what="serve it meanwhile: the large model answers, the small one drafts beside it", command=serve
        )
        yield NextStep(what="ask it one of your rows", command=_curl(project))
    if outcome.labels_needed is not None and not outcome.promise:
        what = "have a promise about single answers" if outcome.goes_live else "have it decided"
        yield NextStep(what=f"to {what}, label {outcome.labels_needed.in_words}, then: smallfirst run {task}")
    elif outcome.why and not outcome.promise and not outcome.gate_line:
        yield NextStep(what=f"no number of rows like these is likely to give a promise: {outcome.why}")


def _curl(project: Project) -> str:
    examples = project.rows.test.examples or project.rows.train.examples
    shortest = min(examples, key=lambda example: (len(example.text), example.text))
    messages = [{"role": m.role, "content": m.content[:MAX_QUESTION_CHARS]} for m in shortest.messages]
    body = json.dumps({"model": project.file.name, "messages": messages}, ensure_ascii=False)
    return f"curl -s localhost:8000/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}"


def hint_of(error: SmallfirstError, steps: Iterable[NextStep]) -> str | None:
    """Return the error's own hint with the steps below it."""
    lines = [*([error.hint] if error.hint else []), *(line for step in steps for line in step.lines)]
    return "\n        ".join(lines) or None
