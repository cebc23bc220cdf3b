"""`smallfirst run`: the whole path, and what to do after it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from smallfirst.cli.options import JSON, PATH, RESUME, TASK, load_task_file, verb
from smallfirst.errors import SmallfirstError
from smallfirst.progress import Progress


@verb("smallfirst run tickets", "smallfirst run tickets --resume", "smallfirst run tickets --json --report report.html")
@TASK
@JSON
@RESUME
@click.option("--report", "report_path", type=PATH, help="Copy the report here.")
@click.option("--despite-check", is_flag=True, help="Run although the check of the rows says NO.")
@click.option("--max-usd", type=float, help="Most that the large model's answers may cost, instead of large.max_usd.")
def run(
    task_yaml: Path,
    as_json: bool,
    resume: bool,
    report_path: Path | None,
    despite_check: bool,
    max_usd: float | None,
) -> None:
    """Train, measure, gate, promote, certify and report."""
    from smallfirst.pipeline import run as pipeline
    from smallfirst.pipeline.summary import RunError, RunSummary, format_summary

    error: Exception | None
    try:
        file = load_task_file(task_yaml)
        if max_usd is not None:
            file = file.with_max_usd(max_usd)
        outcome, error = pipeline.try_run(file, progress=Progress(), resume=resume, despite_check=despite_check)
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
