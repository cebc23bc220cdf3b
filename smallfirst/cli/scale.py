"""The verbs beyond one machine: batch scoring, capacity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smallfirst.cli.options import JSON, PATH, TASK, load_task_file, verb
from smallfirst.progress import Progress

POSITIVE = click.FloatRange(min=0, min_open=True)


@verb(
    "smallfirst score tickets mails.parquet --out scored --keep id",
    "smallfirst score tickets s3://bucket/mails/ --out scored --workers 8",
    "smallfirst score tickets mails.csv --out scored --model large --cap-usd 5",
)
@TASK
@click.argument("rows")
@click.option("--out", type=PATH, default="scored", show_default=True, help="Folder of the results.")
@click.option("--model", default="", help="small, large, a version, an alias or a model's folder. Default: the Router.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column of ROWS that stays beside the answer.")
@click.option("--text", default="", metavar="COLUMN", help="The column that is asked.")
@click.option("--part-rows", type=int, default=2000, show_default=True, help="Rows of a part.")
@click.option("--workers", type=int, help="Processes on a Ray cluster: $RAY_ADDRESS, or one started here.")
@click.option("--retry-errors", is_flag=True, help="Ask again what ended in an error.")
@click.option("--cap-usd", type=float, help="Most that all answers may cost.")
@click.option("--yes", is_flag=True, help="Accept what a paid model costs without a cap.")
@JSON
def score(task_yaml: Path, rows: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Answer ROWS in bulk; the same command goes on where it ended.

    ROWS is a file or folder of Parquet, JSON Lines or CSV, also in an object store. OUT gets part-00000.parquet, … with
    the row number, the answer, its confidence, route, cost and model, or the error of the row.
    """
    from smallfirst.batch.score import ScoreOptions
    from smallfirst.batch.score import score as score_stage
    from smallfirst.records import parse_record

    options = parse_record(ScoreOptions, settings, where="options")
    load_task_file(task_yaml)
    found = score_stage(task_yaml, rows, out, options=options, progress=Progress())
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(found.in_words))
    if found.counts.n_errors:
        click.echo("next: the same command with --retry-errors", err=True)


@verb("smallfirst plan tickets", "smallfirst plan tickets --requests-per-month 30e6 --peak 5 --requests-per-s 120")
@TASK
@click.option("--requests-per-month", type=POSITIVE, help="Such as 30e6. Default: task.yaml's requests_per_month.")
@click.option("--peak", type=POSITIVE, default=3.0, show_default=True, help="Busiest hour over the mean rate.")
@click.option("--headroom", type=click.FloatRange(min=1), default=2.0, show_default=True, help="Spare at that hour.")
@click.option("--requests-per-s", type=POSITIVE, help="Of one machine. Default: the last evaluation's.")
@click.option("--machine", default="", help="Its name under prices.machines. Default: prices.machine.")
@JSON
def plan(
    task_yaml: Path, requests_per_month: float | None, requests_per_s: float | None, machine: str, as_json: bool,
    **options: float,
) -> None:  # fmt: skip
    """Say how many machines a month takes, or to keep the API.

    Machines: requests a second in the busiest hour times the headroom, over what one machine answers. That figure is
    the last run's evaluation of what goes live, which knows neither HTTP nor the ledger, or your load test's.
    """
    from smallfirst.billing.capacity import capacity
    from smallfirst.errors import ConfigError
    from smallfirst.project.run_folder import RunFolder

    file = load_task_file(task_yaml)
    price, run, source = file.prices.machine_named(machine), RunFolder.latest(file.name), "--requests-per-s"
    if requests_per_s is None:
        name = run.live_candidate()
        evaluation = run.evaluation(name, "test")
        requests_per_s = evaluation.requests_per_s if evaluation else None
        source = f'the last evaluation of "{name}", without HTTP and ledger'
    if requests_per_s is None:
        raise ConfigError(
            "no rate of this task's model is known",
            hint="smallfirst plan task.yaml --requests-per-s N   what a load test of yours showed",
        )
    found = capacity(
        requests_per_month or file.requests_per_month, price, requests_per_s=requests_per_s, source=source,
        routed=run.evaluation("routed", "test"), large=run.evaluation("large", "test"), **options,
    )  # fmt: skip
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(found.in_words))
