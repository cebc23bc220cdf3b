"""The verbs beyond one machine: batch scoring, sweeps, capacity."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.cli.options import JSON, LEDGER, PATH, TASK, as_typed, load_project, load_task_file, verb
from smallfirst.progress import Progress

POSITIVE = click.FloatRange(min=0, min_open=True)
MEASURING = ("machine", "processes", "seconds", "url", "large")
"""Options of a measurement."""

if TYPE_CHECKING:
    from smallfirst.capacity.plan import CapacityPlan
    from smallfirst.project.task_file import TaskFile


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


@verb("smallfirst sweep tickets", "smallfirst sweep tickets --trials 20 --workers 4")
@TASK
@click.option("--trials", type=click.IntRange(2), default=8, show_default=True, help="How many settings are tried.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="How many are tried at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws other settings.")
def sweep(task_yaml: Path, trials: int, workers: int, seed: int) -> None:
    """Try other settings of the fine-tune at once and stop poor ones."""
    from smallfirst.pipeline.ladder.sweep import sweep_stage

    for line in sweep_stage(load_project(task_yaml), n_trials=trials, n_workers=workers, seed=seed):
        click.echo(line)


@verb(
    "smallfirst plan tickets --measure",
    "smallfirst plan tickets --requests-per-month 30e6 --p95-ms 300",
    "smallfirst plan tickets --measure --processes 2 --machine big",
    "smallfirst plan tickets --measure --large llama --url http://127.0.0.1:8001 --machine gpu",
)
@TASK
@click.option("--requests-per-month", type=POSITIVE, help="Such as 30e6.")
@click.option("--p95-ms", type=POSITIVE, help="Latency in the busiest hour to stay below.")
@click.option("--peak", type=POSITIVE, help="Busiest hour over the mean rate. Default: the ledger's, or 3.")
@click.option("--burst", type=click.FloatRange(min=0), help="Variation of the rate. Default: the ledger's, or 0.")
@click.option("--spare", default=0, type=click.IntRange(min=0), help="Machines that may fail.")
@click.option("--balance", type=click.Choice(["two choices", "random"]), default="two choices", show_default=True)
@click.option("--measured", "files", multiple=True, type=PATH, help="A measurement that was made elsewhere.")
@click.option("--measure", "do_measure", is_flag=True, help="Load the promoted model here for half a minute.")
@click.option("--machine", default="", help="Measure: name under prices.machines of this machine.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1), help="Measure: servers at once.")
@click.option("--seconds", default=3.0, show_default=True, type=POSITIVE, help="Measure: of each level.")
@click.option("--url", help="Measure: what is served there already; its key is in SMALLFIRST_API_KEY.")
@click.option("--large", metavar="NAME", help="Measure: a large model of one's own, by its served name.")
@LEDGER
@JSON
def plan(
    task_yaml: Path,
    requests_per_month: float | None,
    p95_ms: float | None,
    do_measure: bool,
    files: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Say how many machines a number of requests a month takes.

    The rates of a machine are measured once, under a real load. A simulation of the busiest hour then gives latency and
    use by the number of machines; rent and the large model's bill are those of task.yaml's prices.
    """
    from smallfirst.capacity.measurement import Measurement, from_evaluation
    from smallfirst.capacity.plan import capacity_plan, demand
    from smallfirst.errors import ConfigError
    from smallfirst.paths import state_folder
    from smallfirst.project.run_folder import RunFolder
    from smallfirst.serving.ledger.ledger import open_existing

    file = load_task_file(task_yaml)
    if do_measure:
        done = _measure(file, **{name: options.pop(name) for name in MEASURING})
        click.echo(done, err=p95_ms is not None)
        if p95_ms is None:
            return
    if p95_ms is None or requests_per_month is None:
        raise click.UsageError("give --requests-per-month and --p95-ms, the latency to stay below in the busiest hour")
    run = RunFolder.latest(file.name)
    saved = sorted(state_folder().glob(f"capacity-{file.name}.*.json"))
    found = [Measurement.load(path) for path in (*saved, *files)]
    if all(one.large for one in found):
        evaluated = run.evaluation(run.live_candidate(), "test")
        timed = from_evaluation(evaluated) if evaluated else None
        if timed is None:
            raise ConfigError("no rate of this task's model is known", hint="smallfirst plan task.yaml --measure")
        found.append(timed)
    with ExitStack() as stack:
        ledger = open_existing()
        wanted = demand(
            requests_per_month,
            stack.enter_context(closing(ledger)) if ledger else None,
            file.name,
            routed=run.evaluation("routed", "test"),
            large=run.evaluation("large", "test"),
            audit_share=file.routing.monitor.audit_share if file.routing.judge == "large" else 0.0,
            peak=options["peak"],
            burst=options["burst"],
        )
    sizing = {name: options[name] for name in ("spare", "balance")}
    made = capacity_plan(wanted, found, file.prices, p95_ms=p95_ms, **sizing)
    shown = as_typed(click.get_current_context(), "\n".join(_in_words(made)))
    click.echo(made.model_dump_json(indent=2) if as_json else shown)


def _measure(file: TaskFile, machine: str, processes: int, seconds: float, url: str | None, large: str | None) -> str:
    """Measure, save and say so. Raise ConfigError for an unknown machine."""
    from smallfirst.capacity.measurement import Measurement, measure, serving, this_machine
    from smallfirst.paths import home
    from smallfirst.project.project import Project

    file.prices.machine_named(machine)
    progress, name = Progress(), large or file.name
    requests = [row.messages for row in Project.read(file, progress).rows.test.examples]
    with ExitStack() as stack:
        urls, key = [(url or "").rstrip("/").removesuffix("/v1")], os.environ.get("SMALLFIRST_API_KEY", "")
        if not url:
            with progress.step("starting the server"):
                urls, key = stack.enter_context(serving(file.folder, processes))
        bar = stack.enter_context(progress.bar("load", None, "levels"))
        rates, n = asyncio.run(measure(urls, name, requests, key=key, seconds=seconds, progress=bar))
    found = Measurement(
        machine=machine, model=name, large=bool(large), processes=processes, rates=rates, n=n,
        source=f"{n:,} answers over HTTP, {this_machine()}",
    )  # fmt: skip
    kind = "large" if large else "small"
    path = home() / f"capacity-{file.name}.{kind}{f'-{machine}' if machine else ''}.json"
    found.save(path)
    levels = ", ".join(f"{per_s:,.3g} at {level}" for level, per_s in rates.per_s.items())
    return f"{name}: answers/s of each server by requests under way: {levels}\nsaved: {path}"


def _in_words(made: CapacityPlan) -> list[str]:
    from smallfirst.pricing.money import format_usd
    from smallfirst.progress import format_table
    from smallfirst.report.formats import ms, percent

    heading = ("machines", "servers", "used at peak", "on average", "p50", "p95", "p99", "p95 small", "USD a month", "")
    rows: list[Sequence[str]] = [heading]
    for one in made.tried:
        used, found = one.utilisation, one.simulated
        latencies = [ms(at.value) for at in (found.p50_ms, found.p95_ms, found.p99_ms, found.small_p95_ms)]
        shares = [percent(part, digits=0) for part in (used, used / made.demand.peak)]
        verdict = "<- chosen" if one == made.chosen else "meets it" if one.meets else "misses"
        more = f" + large: {one.large}" if one.large else ""
        rows.append((f"{one}{more}", str(one.replicas), *shares, *latencies, format_usd(one.total_usd), verdict))
    demand = made.demand
    asked = f"{demand.requests_per_month:,.0f} requests a month, {demand.peak_per_s:,.1f}/s in the busiest hour"
    lines = [f"{asked}; p95 at most {ms(made.p95_ms)}", "", *format_table(rows), "", made.verdict, ""]
    return [*lines, "assumed and measured:", *(f"  {one}" for one in made.assumptions)]
