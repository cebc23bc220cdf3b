"""`smallfirst score`: answer rows in bulk, resumable, here or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smallfirst.cli.options import JSON, PATH, TASK, load_task_file, verb
from smallfirst.progress import Progress


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
