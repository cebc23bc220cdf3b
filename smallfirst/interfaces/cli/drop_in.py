"""Verbs in front of a large model: pass traffic on, find its tasks, learn them, take them over and give them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smallfirst.base.progress import Progress, format_table
from smallfirst.interfaces.cli.options import JSON, LEDGER, PATH, show, verb

if TYPE_CHECKING:
    from smallfirst.traffic.discovery.discover import Discovery
    from smallfirst.traffic.exchange import Exchange
    from smallfirst.traffic.settings import GatewaySettings


@verb("smallfirst proxy --upstream https://api.openai.com/v1 --capture", "smallfirst proxy gateway.yaml --port 9000")
@click.argument("gateway_yaml", type=PATH, required=False, metavar="[GATEWAY]")
@click.option("--upstream", metavar="URL", help="Address of the API, up to and including /v1.")
@click.option("--capture", "keep", is_flag=True, help="Keep what passes, redacted, as `capture: {}` in GATEWAY does.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--everybody", is_flag=True, help="Serve whoever reaches the address, without a key of the proxy.")
@LEDGER
def proxy(gateway_yaml: Path | None, upstream: str | None, keep: bool, host: str, port: int, everybody: bool) -> None:
    """Stand in front of a large model: pass on, record, take over.

    Set the application's OPENAI_BASE_URL to the printed address; nothing else changes. GATEWAY is a gateway.yaml or its
    folder, which names upstreams, models and what may be kept.
    """
    from smallfirst.base.paths import home, ledger_place, state_of
    from smallfirst.ledger.keys import KeyStore
    from smallfirst.ledger.ledger import Ledger
    from smallfirst.serving.server import listen
    from smallfirst.traffic.capture_store import FILE_NAME
    from smallfirst.traffic.gateway.access import Access, check_exposure
    from smallfirst.traffic.gateway.app import Gateway, run
    from smallfirst.traffic.gateway.capture import Capture
    from smallfirst.traffic.gateway.decisions import DecisionRoutes
    from smallfirst.traffic.gateway.page import DISCOVERED, page_routes, task_routes
    from smallfirst.traffic.gateway.tasks import TakenOverTasks
    from smallfirst.traffic.settings import CaptureSettings, read_gateway_file

    settings = read_gateway_file(gateway_yaml, upstream=upstream)
    if keep and settings.capture is None:
        settings = settings.model_copy(update={"capture": CaptureSettings()})
    click.get_current_context().with_resource(state_of(settings.folder))
    ledger = Ledger(ledger_place(create=True))
    keys = KeyStore(ledger)
    check_exposure(host, keys, everybody=everybody)
    listener = listen(host, port)
    capture = Capture(settings, settings.capture, home()) if settings.capture else None
    ledger.start()
    access = Access(keys, everybody=everybody)
    local = TakenOverTasks(ledger, prices=settings.prices, one_tenant=access.one_tenant)
    routes = {
        **DecisionRoutes(local).routes,
        **task_routes(home(), settings.folder / DISCOVERED),
        **page_routes(ledger, local),
    }
    gateway = Gateway(settings, capture=capture, local=local, access=access, routes=routes)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"
    click.echo(f"smallfirst passes {address} on to {', '.join(one.base_url for one in settings.upstreams.values())}")
    if capture:
        click.echo(f"kept in {home() / FILE_NAME} for  smallfirst discover")
    else:
        click.echo("nothing is kept of it; with --capture it is, redacted, for  smallfirst discover")
    click.echo(f"its page: {address.removesuffix('v1')}")
    click.echo(f"in the application:  export OPENAI_BASE_URL={address}")
    run(gateway, listener)


@verb("smallfirst discover", "smallfirst discover logs/ traces.json --out discovered --max-error 0.1")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--out", type=PATH, default="discovered", show_default=True, help="Folder of the report and the tasks.")
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of kept answers that may differ from the large model's.",
)
@click.option("--most", type=int, default=100_000, show_default=True, help="Requests held; of more, some are drawn.")
@JSON
def discover(sources: tuple[str, ...], out: Path, max_error: float, most: int, as_json: bool) -> None:
    """Find the tasks in recorded traffic, and what could move.

    SOURCE is a file or folder of logs, or mlflow:EXPERIMENT; left out: what the proxy has kept. OUT gets report.html,
    discovery.json, and a folder with task.yaml and rows for each task that a small model might answer.
    """
    from smallfirst.traffic.discovery.discover import discover as discover_tasks
    from smallfirst.traffic.discovery.discover import save_report
    from smallfirst.traffic.discovery.draft import unknown_terms
    from smallfirst.traffic.settings import FILE_NAME, read_gateway_file

    settings = read_gateway_file(Path(FILE_NAME)) if Path(FILE_NAME).is_file() else None
    exchanges, problems = _exchanges(sources, settings)
    found = discover_tasks(
        exchanges,
        sources=sources or ("kept traffic",),
        out=out,
        max_error=max_error,
        teacher_of=settings.teacher_of if settings else unknown_terms,
        problems=problems,
        most=most,
        log=Progress().log,
    )
    found.save(out / "discovery.json")
    report = save_report(found, out / "report.html")
    show(found, as_json, _in_words)
    if as_json:
        return
    click.echo(f"report: {report}")
    movable = next((task for task in found.tasks if task.verdict == "moves" and task.folder), None)
    if movable:
        click.echo(f"next: smallfirst learn {movable.folder}")


def _exchanges(sources: Sequence[str], settings: GatewaySettings | None) -> tuple[Iterator[Exchange], Sequence[object]]:
    """Return the exchanges of logs, or of what the proxy has kept, and the problems that are met while reading."""
    from smallfirst.base.errors import ConfigError
    from smallfirst.traffic.logs.read import read_logs

    if sources:
        return read_logs(sources, prices=settings.prices if settings else None)
    from smallfirst.base.paths import state_folder
    from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore
    from smallfirst.traffic.settings import CaptureSettings

    store = state_folder() / FILE_NAME
    if not store.is_file():
        raise ConfigError(
            f"no traffic has been kept here: {store} does not exist",
            hint="smallfirst discover LOGS   reads logs that exist already; smallfirst proxy   keeps traffic if "
            "gateway.yaml says capture:",
        )
    capture = (settings and settings.capture) or CaptureSettings()
    return CaptureStore(store, key=capture.key()).exchanges(), ()


def _in_words(found: Discovery) -> list[str]:
    """Return the tasks as a table, and how much can move."""
    from smallfirst.models.pricing import format_usd
    from smallfirst.traffic.discovery.discover import headline, share_in_words

    rows = [["task", "answers", "requests", "bill a month", "moves when learnt", "after shadow", ""]]
    for task in found.tasks:
        shares = [share_in_words(at) if at else "-" for at in (task.outlook.moves, task.outlook.later)]
        answers = f"{len(task.labels)} {task.kind}" if task.labels else task.kind
        bill = "?" if task.usd_per_month is None else format_usd(task.usd_per_month)
        rows.append([task.name, answers, f"{task.n_requests:,}", bill, *shares, task.verdict])
    rest = [f"no task: {rest.n_requests:,} {rest.what}" for rest in found.rest]
    doubts = []
    for task in found.tasks:
        doubts += [f"{task.name}: {line}" for issue in task.issues for line in issue.in_words[:2]]
        doubts += [f"  settle it: smallfirst review {task.folder}"] * bool(task.issues and task.folder)
    table = format_table(rows) if found.tasks else []
    calls = []
    for task in found.tasks:
        if task.calls:
            by_function = ", ".join(f"{name} {n:,}" for name, n in task.labels.items())
            calls += [f"{task.name}: {task.calls.in_words}", f"  {by_function}; {task.why}"]
    lines = [*table, *calls, *rest, *doubts, *_steps_in_words(found), headline(found)]
    if found.problems:
        lines.append(f"not readable: {len(found.problems):,} lines of the log, the first {found.problems[0]}")
    return lines


def _steps_in_words(found: Discovery) -> list[str]:
    """Return agents' runs and their steps as a table; nothing where there are none."""
    from smallfirst.models.pricing import format_usd

    if found.runs is None:
        return []

    def bill(usd: float | None) -> str:
        return "?" if usd is None else format_usd(usd)

    rows = [
        ["step", "does", "in runs", "place", "after", "a run", "told by request", "by step before", "usual", "needs"]
    ]
    for task in found.tasks:
        if step := task.step:
            told = [task.outlook.agreement, step.from_before, step.usual]
            needs = f"{step.cases_needed:,} cases, {step.runs_needed:,} runs" if step.cases_needed else "-"
            place = f"{step.place}, {step.position:g} of {step.of:g}"
            shares = [f"{one.value:.0%}" if one else "-" for one in told]
            names = [task.name, step.kind, f"{step.share:.0%}", place, next(iter(step.follows))]
            rows.append([*names, bill(step.usd_per_run), *shares, needs])
    runs = found.runs
    if runs.n_others:
        rows.append([f"{runs.n_others:,} others", "open", *["-"] * 3, bill(runs.a_run(runs.others_usd)), *["-"] * 4])
    a_run = f"{runs.n_requests / runs.n:.1f} requests, {bill(runs.a_run(runs.cost_usd))} each"
    return [f"agents: {runs.n:,} runs of {a_run}; most often {next(iter(runs.paths))}", *format_table(rows)]


@verb("smallfirst learn discovered/tickets", "smallfirst learn discovered/tickets --minutes 20")
@click.argument("folder", type=PATH)
@click.option("--minutes", type=float, help="How long it may take; left out: every candidate is trained to the end.")
@JSON
def learn(folder: Path, minutes: float | None, as_json: bool) -> None:
    """Learn a discovered task from recorded answers and corrections.

    FOLDER is a task that was drafted from traffic. People's right answers in its corrections.jsonl win over the large
    model's. Afterwards the task is in shadow: the small model is compared with the large one, which answers.
    """
    from smallfirst.traffic.learning import learn as learn_task

    found = learn_task(folder, progress=Progress(), minutes=minutes)
    show(found, as_json)
    if not as_json:
        click.echo(f"next: smallfirst take-over {found.task} --share 0.1")


@verb("smallfirst take-over tickets --share 0.1", "smallfirst take-over tickets --share 1")
@click.argument("task")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True)
@click.option("--accept-format", is_flag=True, help="Also where recorded answers do not come back byte for byte.")
def take_over(task: str, share: float, accept_format: bool) -> None:
    """Let the small model answer a share of a learnt task's requests.

    Of that share it answers what its certificate covers, in the large model's format; everything else passes. A
    running proxy follows within a second.
    """
    from smallfirst.traffic.task_source import TakeOvers

    file = TakeOvers()
    taken = file.get(task)
    if not accept_format:
        taken.check_format()
    file.put(taken.moved("live", cause="person", why="taken over by a person", share=share))
    click.echo(f"{task}: the small model answers what its certificate covers, in {share:.0%} of the requests")
    click.echo(f"promise: {taken.promise or 'none yet: it begins by itself if the second look shows one'}")
    click.echo(f"next: smallfirst give-back {task}   lets the large model answer everything again")


@verb("smallfirst give-back tickets")
@click.argument("task")
def give_back(task: str) -> None:
    """Let the large model answer all of a task's requests again."""
    from smallfirst.traffic.task_source import TakeOvers

    file = TakeOvers()
    file.put(file.get(task).moved("shadow", cause="person", why="given back by a person", share=0.0))
    click.echo(f"{task}: the large model answers; the small one is compared with it")


@verb("smallfirst tasks", "smallfirst tasks --json")
@click.argument("discovered", type=PATH, default=Path("discovered"), metavar="[FOLDER]")
@click.option("--days", type=click.IntRange(1), default=30, show_default=True, help="Days to count over.")
@JSON
def tasks(discovered: Path, days: int, as_json: bool) -> None:
    """List the tasks of the traffic: bill, state, promise, savings.

    FOLDER is where `discover` wrote its tasks. A running proxy shows the same on its page at /, and as JSON under
    /v1/smallfirst/tasks.
    """
    from smallfirst.base.paths import state_folder
    from smallfirst.traffic.gateway.page import HEADING, read_task_table

    table = read_task_table(state_folder(), discovered, days=days)
    if as_json:
        click.echo(table.model_dump_json(indent=2))
        return
    if not table.tasks:
        click.echo("no task yet\nnext: smallfirst discover   finds them in what was captured, or in logs")
        return
    click.echo("\n".join(format_table([HEADING, *(line.cells for line in table.tasks)])))
    for line in table.tasks:
        for said in filter(None, (line.second_look, *line.watched)):
            click.echo(f"{line.task}: {said}")
        if line.state == "stepped back":
            click.echo(f"{line.task} has stepped back: {line.why}")
        if line.tenant_back is not None:
            click.echo(f"{line.task} has stepped back for {line.tenant_back.tenant} alone: {line.tenant_back.why}")
