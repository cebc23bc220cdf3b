"""Verbs of the path: train, measure, gate, sign, certify, report, and change or take away who answers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from smallfirst.base.errors import ConfigError, SmallfirstError, StageMissing
from smallfirst.base.progress import Progress
from smallfirst.interfaces.cli.options import (
    JSON,
    PATH,
    RESUME,
    RUN,
    TASK,
    TYPED_TASK,
    WORKERS,
    load_project,
    load_run,
    load_task_file,
    show,
    show_steps,
    verb,
)


@verb(
    "smallfirst run tickets",
    "smallfirst run tickets --minutes 20",
    "smallfirst run tickets --resume",
    "smallfirst run tickets --json --report report.html",
)
@TASK
@JSON
@RESUME
@click.option("--report", "report_path", type=PATH, help="Copy the report here.")
@click.option("--despite-check", is_flag=True, help="Run although the check of the rows says NO.")
@click.option("--challenge", is_flag=True, help="Go live only if shown more accurate than the champion.")
@click.option("--minutes", type=float, help="How long the run may take, instead of minutes in task.yaml.")
@click.option("--max-usd", type=float, help="Most that the large model's answers may cost, instead of large.max_usd.")
@WORKERS
def run(
    task_yaml: Path,
    as_json: bool,
    resume: bool,
    report_path: Path | None,
    despite_check: bool,
    challenge: bool,
    minutes: float | None,
    max_usd: float | None,
    workers: int,
) -> None:
    """Train, measure, gate, promote, certify and report."""
    from smallfirst.path import run as pipeline
    from smallfirst.path.summary import RunError, RunSummary, format_summary

    error: BaseException | None
    ctx = click.get_current_context()
    try:
        file = load_task_file(task_yaml)
        if max_usd is not None:
            file = file.with_max_usd(max_usd)
        if minutes is not None:
            file = file.with_minutes(minutes)
        outcome, error = pipeline.try_run(
            file,
            task=ctx.meta[TYPED_TASK],
            progress=Progress(),
            resume=resume,
            despite_check=despite_check,
            challenge=challenge,
            workers=workers,
        )
    except SmallfirstError as wrong:
        outcome, error = RunSummary(task=str(task_yaml), error=RunError.of(wrong)), wrong
    if report_path and outcome.report:
        shutil.copyfile(outcome.report, report_path)
        outcome = outcome.model_copy(update={"report": str(report_path)})
    if as_json:
        click.echo(outcome.model_dump_json(indent=2))
    if error is not None:
        raise error
    if not as_json:
        click.echo(f"\n{format_summary(outcome)}\nreport: {outcome.report}\n")
        show_steps(outcome.next_steps)


@verb("smallfirst train tickets", "smallfirst train tickets --resume", "smallfirst train tickets --workers 4")
@TASK
@RESUME
@WORKERS
def train(task_yaml: Path, resume: bool, workers: int) -> None:
    """Fine-tune the small model and fit the linear ones."""
    from smallfirst.path.train import train_stage

    project = load_project(task_yaml)._replace(n_workers=workers)
    run_folder = train_stage(project, resume=resume)
    click.echo(f"run {run_folder.path.name}\nnext: smallfirst evaluate {task_yaml}")


@verb("smallfirst evaluate tickets")
@TASK
@RUN
@JSON
def evaluate(task_yaml: Path, run_name: str | None, as_json: bool) -> None:
    """Measure every candidate and the large model on the same rows."""
    from smallfirst.path.evaluate import evaluate_stage

    project, run_folder = load_run(task_yaml, run_name)
    found = evaluate_stage(project, run_folder)
    if as_json:
        rows = [e.model_dump(mode="json", exclude={"rows"}) for e in found]
        click.echo(json.dumps(rows, indent=2))
        return
    for e in found:
        click.echo(f"{e.candidate:<8} {e.in_words}")
    click.echo(f"next: smallfirst gate {task_yaml}")


@verb("smallfirst gate tickets --json")
@TASK
@RUN
@JSON
def gate(task_yaml: Path, run_name: str | None, as_json: bool) -> None:
    """Check which candidates may go live alone.

    Exit code 3 if the chosen one may not; `calibrate` then looks for a part of the requests that can stay small.
    """
    from smallfirst.measuring.verdict import format_verdict
    from smallfirst.path.release import chosen_candidate, gate_line, gate_stage, may_go_alone
    from smallfirst.path.summary import NextStep, after_gate

    project, run_folder = load_run(task_yaml, run_name)
    verdicts = gate_stage(project, run_folder)
    if as_json:
        click.echo(verdicts.model_dump_json(indent=2))
    else:
        for verdict in verdicts.verdicts:
            click.echo(format_verdict(verdict))
        click.echo(f"goes live by the gate: {verdicts.winner or 'none'}")
    passed = may_go_alone(project, verdicts.of(chosen_candidate(project, verdicts)))
    if not as_json:
        if not project.file.sets_gate:
            line = f"write  {gate_line(project)}  into it, if that is good enough"
            click.echo(f"task.yaml sets no gate: this one is the default, and lets nobody answer alone; {line}")
        promote = NextStep(what="let it go live", command="smallfirst promote task.yaml")
        show_steps([promote] if passed else after_gate(project, run_folder, verdicts))
    if not passed:
        sys.exit(3)


@verb('smallfirst override tickets --candidate words --by Ada --because "a pilot with 20 users"')
@TASK
@RUN
@click.option("--candidate", required=True, help="Who may go live all the same.")
@click.option("--by", required=True, help="Who signs.")
@click.option("--because", required=True, help="Why; stands in the registry and the report.")
def override(task_yaml: Path, run_name: str | None, candidate: str, by: str, because: str) -> None:
    """Let a candidate pass that failed its gate, signed with a reason.

    The failed checks stay on record, with the name and the reason.
    """
    from smallfirst.measuring.verdict import format_verdict
    from smallfirst.path.release import override_stage

    project, run_folder = load_run(task_yaml, run_name)
    verdicts = override_stage(project, run_folder, candidate, by=by, because=because)
    click.echo(format_verdict(verdicts.of(candidate)))
    click.echo(f"next: smallfirst promote {task_yaml} --candidate {candidate}")


@verb("smallfirst calibrate tickets")
@TASK
@RUN
@JSON
def calibrate(task_yaml: Path, run_name: str | None, as_json: bool) -> None:
    """Find and certify the threshold that keeps the guarantee.

    The Router is measured with it on the test rows. Where no candidate may go live alone, plans are tried that keep a
    part of the requests small. Exit code 3 if nothing may go live.
    """
    from smallfirst.measuring.verdict import format_verdict
    from smallfirst.path.calibrate import calibrate_stage
    from smallfirst.path.project.run_folder import PROMOTED
    from smallfirst.path.release import chosen_candidate, decide_outcome, may_go_alone, plans_stage
    from smallfirst.path.summary import after_gate, after_outcome

    project, run_folder = load_run(task_yaml, run_name)
    verdicts = run_folder.verdicts()
    verdict = verdicts.of(chosen_candidate(project, verdicts))
    said = []
    if (run_folder.path / PROMOTED).exists():
        calibrate_stage(project, run_folder)
    else:
        plans = plans_stage(project, run_folder, verdict)
        said += [format_verdict(trial) for trial in plans]
        if not any(trial.passed for trial in plans) and may_go_alone(project, verdict):
            calibrate_stage(project, run_folder, candidate=verdict.candidate)
    outcome, certificate = decide_outcome(project, run_folder), run_folder.certificate()
    if as_json:
        click.echo(outcome.model_dump_json(indent=2) if said else certificate.model_dump_json(indent=2))
    else:
        said.append(("issued: " if certificate.issued else "refused: ") + certificate.report.why)
        if certificate.issued:
            said.append(f"threshold {certificate.threshold:.4f}, keeps {certificate.coverage} of requests small")
        click.echo(
            "\n".join([*said, f"the rest: {certificate.below} ({certificate.report.below_why})", outcome.sentence])
        )
        show_steps(after_outcome(project, outcome) if outcome.goes_live else after_gate(project, run_folder, verdicts))
    if not outcome.goes_live:
        sys.exit(3)


@verb("smallfirst report tickets")
@TASK
@RUN
def report(task_yaml: Path, run_name: str | None) -> None:
    """Write the report as one HTML file."""
    from smallfirst.path.report.page import report_stage

    project, run_folder = load_run(task_yaml, run_name)
    click.echo(str(report_stage(project, run_folder)))


@verb("smallfirst promote tickets", "smallfirst promote tickets --candidate words")
@TASK
@RUN
@click.option("--candidate", help="Another that passed, instead of the one that routing.small names.")
def promote(task_yaml: Path, run_name: str | None, candidate: str | None) -> None:
    """Register the candidate that passed and make it champion.

    It is certified first, unless it is. Exit code 3 if nothing of it may be answered.
    """
    from smallfirst.measuring.outcome import Outcome
    from smallfirst.path.project.run_folder import OUTCOME
    from smallfirst.path.release import promote_stage
    from smallfirst.path.summary import after_outcome

    project, run_folder = load_run(task_yaml, run_name)
    promoted = promote_stage(project, run_folder, candidate)
    outcome = run_folder.read(Outcome, OUTCOME, next_command="smallfirst promote task.yaml")
    click.echo(outcome.live_as or "nothing went live")
    click.echo(outcome.sentence)
    show_steps(after_outcome(project, outcome))
    if promoted is None:
        sys.exit(3)


@verb("smallfirst rollback tickets")
@TASK
def rollback(task_yaml: Path) -> None:
    """Make the former champion champion again."""
    from smallfirst.registry import versions

    version = versions.rollback(load_task_file(task_yaml).register_to)
    click.echo(f"{version.name} version {version.version} @champion")


@verb("smallfirst export tickets tickets.gguf", "smallfirst export tickets tickets.gguf --precision q8_0")
@TASK
@click.argument("target", type=PATH)
@RUN
@click.option("--precision", type=click.Choice(["bf16", "f16", "q8_0"]), default="bf16", show_default=True)
@click.option("--rows", "n_rows", type=int, default=64, show_default=True, help="Selection rows to compare on.")
@click.option("--candidate", help="Another candidate of the run than the champion.")
def export(
    task_yaml: Path, target: Path, run_name: str | None, precision: Any, n_rows: int, candidate: str | None
) -> None:
    """Write the champion as one GGUF file, for llama.cpp.

    Its answers there are compared with those here. Linear models have no other engine.
    """
    from smallfirst.models.export import export as export_model

    project, run_folder = load_run(task_yaml, run_name)
    texts = [example.text for example in project.rows.selection.examples[:n_rows]]
    folder = run_folder.model_folder(candidate or run_folder.live_candidate())
    found = export_model(folder, target, precision=precision, texts=texts)
    click.echo(found.model_dump_json(indent=2))


@verb("smallfirst parity tickets", "smallfirst parity tickets --url http://127.0.0.1:8000/v1 --rows 50")
@TASK
@click.option("--url", help="A running endpoint, up to and including /v1; left out: one is started with the champion.")
@click.option("--model", "name", help="Served name to ask; left out: the task's small model.")
@click.option("--rows", "n_rows", type=click.IntRange(min=1), help="Most rows to ask; left out: as promotion does.")
@click.option("--key-env", default="SMALLFIRST_API_KEY", show_default=True, help="Environment variable of the key.")
@JSON
def parity(task_yaml: Path, url: str | None, name: str | None, n_rows: int | None, key_env: str, as_json: bool) -> None:
    """Compare an endpoint's answers with the measured ones.

    Evaluation rows are asked again over HTTP. Without --url the result is stored with the champion: one that was
    measured with PyTorch may be served through the vLLM of task.yaml once it has passed there. Exit code 3 if the
    answers differ.
    """
    from smallfirst.path.parity import require_parity, served_parity
    from smallfirst.path.project.run_folder import RunFolder
    from smallfirst.registry import versions
    from smallfirst.serving.app import Address

    project = load_project(task_yaml)
    version = versions.resolve(f"{project.file.register_to}@{versions.CHAMPION}")
    run_folder = RunFolder.latest(project.file.name, version.tags.get("run"))
    if not (candidate := version.tags.get("candidate")):
        raise StageMissing(
            f"{version.name} version {version.version} does not say what it was evaluated as",
            hint="smallfirst promote task.yaml",
        )
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url!r} is no address", hint="for example --url http://127.0.0.1:8000/v1")
    at = url and (Address(url, os.environ.get(key_env, "")), name or f"{project.file.name}-small")
    found = served_parity(project, run_folder, version, candidate, n_rows=n_rows, at=at or None)
    show(found, as_json)
    require_parity(found)
