"""`smallfirst discover`: which tasks recur in traffic, what they cost, and which part of it can move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smallfirst.cli.options import JSON, PATH, verb

if TYPE_CHECKING:
    from smallfirst.gateway.settings import GatewaySettings
    from smallfirst.traffic.discovery.found import Discovery
    from smallfirst.traffic.exchange import Exchange
    from smallfirst.traffic.task_source import Teacher


@verb("smallfirst discover", "smallfirst discover logs/ traces.json --out discovered --max-error 0.1")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--out", type=PATH, default="discovered", show_default=True, help="Folder of the report and the tasks.")
@click.option(
    "--max-error",
    type=click.Choice(["0.02", "0.05", "0.1", "0.2"]),
    default="0.05",
    show_default=True,
    help="Share of kept answers that may differ from the large model's.",
)
@click.option("--most", type=int, default=100_000, show_default=True, help="Requests held; of more, some are drawn.")
@JSON
def discover(sources: tuple[str, ...], out: Path, max_error: str, most: int, as_json: bool) -> None:
    """Find the tasks in recorded traffic, and what could move.

    SOURCE is a file or folder of logs, or mlflow:EXPERIMENT; left out: what the proxy has kept. OUT gets report.html,
    discovery.json, and a folder with task.yaml and rows for each task that a small model might answer.
    """
    from smallfirst.progress import Progress
    from smallfirst.traffic.discovery import page
    from smallfirst.traffic.discovery.discover import discover as discover_tasks

    settings = _settings()
    exchanges, problems = _exchanges(sources, settings)
    found = discover_tasks(
        exchanges,
        sources=sources or ("kept traffic",),
        out=out,
        max_error=float(max_error),
        teachers=_teachers(settings),
        problems=problems,
        most=most,
        log=Progress().log,
    )
    found.save(out / "discovery.json")
    report = page.save(found, out / "report.html")
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo("\n".join(_in_words(found)))
    click.echo(f"report: {report}")
    movable = next((task for task in found.tasks if task.verdict == "moves" and task.folder), None)
    if movable:
        click.echo(f"next: smallfirst learn {movable.folder}")


def _settings() -> GatewaySettings | None:
    """Return the proxy's settings, if there are any here."""
    from smallfirst.gateway.settings import FILE_NAME, read_gateway_file

    return read_gateway_file(Path(FILE_NAME)) if Path(FILE_NAME).is_file() else None


def _teachers(settings: GatewaySettings | None) -> Mapping[str, Teacher]:
    """Return the terms of large models as the settings give them."""
    from smallfirst.traffic.task_source import Teacher

    return {
        name: Teacher(model=name, licence=terms.licence, training_allowed=terms.training_allowed is not False)
        for name, terms in (settings.teachers if settings else {}).items()
    }


def _exchanges(sources: Sequence[str], settings: GatewaySettings | None) -> tuple[Iterator[Exchange], Sequence[object]]:
    """Return the exchanges of logs, or of what the proxy has kept, and the problems that are met while reading."""
    from smallfirst.errors import ConfigError
    from smallfirst.traffic.logs.read import read_logs

    if sources:
        return read_logs(sources, prices=settings.prices if settings else None)
    from smallfirst.paths import state_folder
    from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore

    store = state_folder() / FILE_NAME
    if not store.is_file():
        raise ConfigError(
            f"no traffic has been kept here: {store} does not exist",
            hint="smallfirst discover LOGS   reads logs that exist already; smallfirst proxy   keeps traffic if "
            "gateway.yaml says capture:",
        )
    return CaptureStore(store, key=_capture_key(settings)).exchanges(), ()


def _capture_key(settings: GatewaySettings | None) -> str | None:
    import os

    from smallfirst.traffic.capture_store import KEY_ENV

    own = settings.capture.key_env if settings and settings.capture else None
    return os.environ.get(own or KEY_ENV) or None


def _in_words(found: Discovery) -> list[str]:
    """Return the tasks as a table, and how much can move."""
    from smallfirst.pricing.money import format_usd
    from smallfirst.progress import format_table
    from smallfirst.traffic.discovery.page import headline

    rows = [["task", "answers", "requests", "bill a month", "can move", ""]]
    for task in found.tasks:
        at = task.outlook.at(found.max_error)
        share = f"{at.share:.0%} [{at.low:.0%}, {at.high:.0%}]" if task.outlook.shares else "-"
        answers = f"{len(task.labels)} {task.kind}" if task.labels else task.kind
        bill = "?" if task.usd_per_month is None else format_usd(task.usd_per_month)
        rows.append([task.name, answers, f"{task.n_requests:,}", bill, share, task.verdict])
    rest = [f"no task: {rest.n_requests:,} {rest.what}" for rest in found.rest]
    lines = [*(format_table(rows) if found.tasks else []), *rest, headline(found)]
    if found.problems:
        lines.append(f"not readable: {len(found.problems):,} lines of the log, the first {found.problems[0]}")
    return lines
