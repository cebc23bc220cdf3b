"""The tasks of the traffic at a glance: what was found, learnt and taken over, what it costs and what it saves."""

from __future__ import annotations

import asyncio
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from smallfirst.base.records import Record
from smallfirst.deployment.billing.saved import Saving, evaluated_costs, savings
from smallfirst.deployment.dashboard.plugin import page_files
from smallfirst.ledger.ledger import Ledger, open_existing
from smallfirst.ledger.rows import StateRow
from smallfirst.ledger.sums import DrawnAudits
from smallfirst.models.pricing import format_usd
from smallfirst.path.project.settlements import read_settlements
from smallfirst.traffic.discovery.discover import Discovery
from smallfirst.traffic.gateway.app import Handler
from smallfirst.traffic.gateway.draft_watch import DraftWatch
from smallfirst.traffic.gateway.http import GatewayRequest, GatewayResponse, json_response
from smallfirst.traffic.gateway.tasks import TakenOverTasks
from smallfirst.traffic.gateway.upstreams import Upstreams
from smallfirst.traffic.task_source import LEARNT, TakeOver, TakeOvers, TaskSource, TenantStepBack

DISCOVERED = "discovered"
"""Folder that `discover` writes to unless another is named."""
DAYS = 30
"""Days that requests and money are counted over."""
HEADING = ("task", "requests", "bill", "state", "share small", "saved", "promise")


class TaskLine(Record):
    """One task."""

    task: str
    state: Literal["found", "shadow", "live", "stepped back"]
    """found: it was discovered and not learnt; the others as in takeovers.json."""
    requests: int
    """In the last DAYS days, as the proxy noted them; of a found task, in a month of the traffic it was found in."""
    bill_usd: float | None
    """What these cost, audits included; None if no price is known."""
    share: float
    """Share of its requests for which the small model may answer, in [0, 1]."""
    small_share: float | None
    """Share that it did answer, in [0, 1]; of a found task, the share that is foretold to move; None if unknown."""
    promise: str = ""
    """What its certificate promises, in words; empty without one."""
    saved_usd: float | None = None
    """What the large model would have cost more, by `billing.saved`; drafts and audits are paid from it."""
    teacher: str = ""
    """The model that it was learnt from."""
    training_allowed: bool = True
    """False: the teacher's answers only measure."""
    why: str = ""
    """What led to its state."""
    tenant_back: TenantStepBack | None = None
    """The tenant for whom alone it has stepped back."""
    second_look: str = ""
    """What the second look found, and the command that it waits for; empty before it."""
    watched: tuple[str, ...] = ()
    """Of a live task: what is usual of its drafts, and a warning where audits have no verdict; in sentences."""
    issues: tuple[dict[str, Any], ...] = ()
    """What `discover` found wrong with its recorded answers and nobody has settled: DataIssues with their cost."""
    review: str = ""
    """The command that settles it."""

    @property
    def cells(self) -> tuple[str, ...]:
        state = self.state if self.state != "live" else f"live, {self.share:.0%} of requests"
        expected = "foretold " if self.state == "found" and self.small_share is not None else ""
        return (
            self.task,
            f"{self.requests:,} a month" if self.state == "found" else f"{self.requests:,}",
            "" if self.bill_usd is None else format_usd(self.bill_usd),
            state if self.training_allowed else f"{state}, measuring only",
            "" if self.small_share is None else f"{expected}{self.small_share:.0%}",
            "" if self.saved_usd is None else format_usd(self.saved_usd),
            self.promise,
        )


class TaskTable(Record):
    """All tasks, those with the largest bill first."""

    since: datetime
    tasks: tuple[TaskLine, ...]


def task_table(
    takeovers: Mapping[str, TakeOver], ledger: Ledger | None, folders: Sequence[Path] = (), *, days: int = DAYS
) -> TaskTable:
    """Return the learnt tasks, and those that were discovered into `folders`."""
    since = datetime.now(UTC) - timedelta(days=days)
    known = evaluated_costs(learnt_folders(takeovers)) if ledger else {}
    saved = {one.task: one for one in savings(ledger, since, None, evaluated=known)} if ledger else {}
    bills: dict[str, float] = defaultdict(float)
    for row in ledger.sums(since, by=("task", "kind", "outcome")) if ledger else ():
        if row.kind == "audit" or row.outcome == "answered":
            bills[row.task] += row.cost_usd
    drawn = {one.task: one for one in DrawnAudits.of(ledger.drawn(since, datetime.now(UTC)).values())} if ledger else {}
    lines = []
    for name, one in takeovers.items():
        watched = [*_drafts(one, ledger), *([drawn[name].in_words] if name in drawn and drawn[name].warns else [])]
        lines.append(_learnt(one, saved.get(name), bills[name]).model_copy(update={"watched": tuple(watched)}))
    lines += [line for folder in folders for line in _found(folder, takeovers)]
    return TaskTable(since=since, tasks=tuple(sorted(lines, key=lambda line: -(line.bill_usd or 0.0))))


def learnt_folders(takeovers: Mapping[str, TakeOver]) -> dict[str, Path]:
    """Return by task the folder of what was learnt, in whose state folder its runs are."""
    return {name: one.folder / LEARNT for name, one in takeovers.items()}


def read_task_table(state: Path, discovered: Path, *, days: int = DAYS) -> TaskTable:
    """Return the table of a state folder and a folder of discovered tasks; either may be missing."""
    ledger = open_existing()
    try:
        return task_table(TakeOvers(state / "takeovers.json").read(), ledger, [discovered], days=days)
    finally:
        if ledger:
            ledger.close()


def task_routes(state: Path, discovered: Path) -> dict[tuple[str, str], Handler]:
    """Return the proxy's route to the table."""

    async def as_json(request: GatewayRequest, _: Upstreams) -> GatewayResponse:
        table = await asyncio.to_thread(read_task_table, state, discovered)
        return json_response(table.model_dump(mode="json"))

    return {("GET", "/v1/smallfirst/tasks"): as_json}


def _learnt(taken: TakeOver, saving: Saving | None, bill_usd: float) -> TaskLine:
    source = TaskSource.of(taken.folder)
    return TaskLine(
        task=taken.task,
        state=taken.state,
        requests=saving.n_small + saving.n_large if saving else 0,
        bill_usd=bill_usd,
        share=taken.share,
        small_share=saving.share_small if saving else None,
        promise=taken.promise,
        saved_usd=saving.saved_usd.usd if saving and saving.saved_usd else None,
        teacher=source.teacher.model if source else "",
        training_allowed=source.teacher.training_allowed if source else True,
        why=taken.why,
        tenant_back=taken.tenant_back,
        second_look=taken.about_second_look,
        **_unsettled(taken.folder),
    )


def _unsettled(folder: Path) -> dict[str, Any]:
    path, decided = folder.parent / "discovery.json", {one.id for one in read_settlements(folder)}
    tasks = {task.name: task for task in Discovery.load(path).tasks} if path.exists() else {}
    issues = [
        one.model_dump(mode="json", exclude={"keys", "suggested"}) | {"cost": one.cost}
        for one in (tasks[folder.name].issues if folder.name in tasks else ())
        if one.id not in decided
    ]
    return {"issues": issues, "review": f"smallfirst review {shlex.quote(str(folder))}"}


def _drafts(taken: TakeOver, ledger: Ledger | None) -> Iterator[str]:
    """Yield what is known of the drafts of a live task: of the tenant of whom it is learnt last, or of any."""
    if ledger is None or taken.state != "live":
        return
    states = reversed(ledger.entries(StateRow, task=taken.task))
    certificate = next((state.certificate for state in states if state.certificate), "")
    found = ledger.shared.under(DraftWatch.place(taken.task, certificate))
    known = [DraftWatch.model_validate(one) for one in found.values()]
    if known:
        learning = sum(not one.usual for one in known)
        tenants = f" ({learning} of {len(known)} tenants are still learnt)" if len(known) > 1 else ""
        yield f"{max(known, key=lambda one: one.since_hour).in_words}{tenants}"


def _found(folder: Path, known: Mapping[str, TakeOver]) -> Iterator[TaskLine]:
    """Yield the tasks in a folder that could move and were not learnt; none if nothing was discovered there."""
    path = folder / "discovery.json"
    for task in Discovery.load(path).tasks if path.exists() else ():
        source = TaskSource.of(folder / task.name)
        if task.verdict == "stays" or task.name in known:
            continue
        foretold = source.foretold_share if source else None
        yield TaskLine(
            task=task.name,
            state="found",
            requests=task.requests_per_month,
            bill_usd=task.usd_per_month,
            share=0.0,
            small_share=foretold[0] if foretold else None,
            teacher=source.teacher.model if source else "",
            training_allowed=source.teacher.training_allowed if source else True,
            why=task.why,
            **_unsettled(folder / task.name),
        )


def page_routes(ledger: Ledger, local: TakenOverTasks) -> dict[tuple[str, str], Handler]:
    """Return the routes of the page, whose files are public, and of its figures."""

    async def session(_: GatewayRequest, __: Upstreams) -> GatewayResponse:
        return json_response({"at": "proxy", "role": "admin", "name": "", "tasks": list(local.tasks), "models": []})

    async def watched(request: GatewayRequest, _: Upstreams) -> GatewayResponse:
        from smallfirst.deployment.dashboard.watch import watch

        routers = {name: task.router for name, task in local.tasks.items()}
        query = dict(parse_qsl(request.query.decode("latin-1")))
        return json_response(await asyncio.to_thread(watch, ledger, routers, query))

    return {
        **{("GET", path): _file(content, headers) for path, content, headers in page_files()},
        ("GET", "/v1/dashboard/session"): session,
        ("GET", "/v1/dashboard/watch"): watched,
    }


def _file(content: bytes, headers: Mapping[str, str]) -> Handler:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def answer(_: GatewayRequest, __: Upstreams) -> GatewayResponse:
        return GatewayResponse(200, raw, content)

    return answer
