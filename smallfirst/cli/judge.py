"""Verbs that judge candidates: measure, gate, sign, certify, report."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from smallfirst.cli.options import JSON, LEDGER, PATH, RUN, TASK, load_run, show_steps, verb


@verb("smallfirst evaluate tickets")
@TASK
@RUN
@JSON
def evaluate(task_yaml: Path, run_name: str | None, as_json: bool) -> None:
    """Measure every candidate and the large model on the same rows."""
    import json

    from smallfirst.pipeline.evaluate import evaluate_stage

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
    from smallfirst.gate.verdict import format_verdict
    from smallfirst.pipeline.next_step import NextStep, after_gate
    from smallfirst.pipeline.plans.outcome import gate_line, may_go_alone
    from smallfirst.pipeline.release import chosen_candidate, gate_stage

    project, run_folder = load_run(task_yaml, run_name)
    verdicts = gate_stage(project, run_folder)
    if as_json:
        click.echo(verdicts.model_dump_json(indent=2))
    else:
        for verdict in verdicts.verdicts:
            click.echo(format_verdict(verdict))
        how = f" ({verdicts.how_found})" if verdicts.how_found else ""
        click.echo(f"goes live by the gate: {verdicts.winner or 'none'}{how}")
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
    from smallfirst.gate.verdict import format_verdict
    from smallfirst.pipeline.release import override_stage

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
    from smallfirst.gate.verdict import format_verdict
    from smallfirst.pipeline.calibrate import calibrate_stage
    from smallfirst.pipeline.next_step import after_gate, after_outcome
    from smallfirst.pipeline.plans.outcome import decide_outcome, may_go_alone
    from smallfirst.pipeline.release import chosen_candidate, plans_stage
    from smallfirst.project.run_folder import PROMOTED

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
        said.append(("issued: " if certificate.issued else "refused: ") + certificate.why)
        if certificate.issued:
            said.append(f"threshold {certificate.threshold:.4f}, keeps {certificate.coverage} of requests small")
        click.echo("\n".join([*said, f"the rest: {certificate.below} ({certificate.below_why})", outcome.sentence]))
        show_steps(after_outcome(project, outcome) if outcome.goes_live else after_gate(project, run_folder, verdicts))
    if not outcome.goes_live:
        sys.exit(3)


@verb(
    "smallfirst report tickets",
    "smallfirst report tickets --live 24h",
    "smallfirst report tickets --live 30d --html bill.html",
)
@TASK
@RUN
@click.option("--live", metavar="TIME", help="Report on what was served in the last 24h, 7d or 4w, from the ledger.")
@click.option("--html", type=PATH, help="With --live: write the report as one HTML file too.")
@LEDGER
@JSON
def report(task_yaml: Path, run_name: str | None, live: str | None, html: Path | None, as_json: bool) -> None:
    """Write the report as one HTML file; --live: costs and savings.

    The live report has who answered, what it cost on machines as they were used, what it saved, and from
    how many requests on that pays.
    """
    if live is not None:
        from smallfirst.cli.account import show_live

        show_live(task_yaml, live, html=html, as_json=as_json)
        return
    from smallfirst.pipeline.report_data import report_stage

    project, run_folder = load_run(task_yaml, run_name)
    click.echo(str(report_stage(project, run_folder)))
