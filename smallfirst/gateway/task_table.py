"""The tasks of the traffic at a glance: what was found, learnt and taken over, what it costs and what it saves."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from smallfirst.errors import ConfigError
from smallfirst.gateway.app import Handler
from smallfirst.gateway.http import GatewayRequest, GatewayResponse, json_response
from smallfirst.gateway.takeover.takeovers import TakeOver, TakeOvers
from smallfirst.gateway.upstreams import Upstreams
from smallfirst.pricing.money import format_usd
from smallfirst.records import Record
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.traffic.discovery.found import Discovery, FoundTask
from smallfirst.traffic.logs.shapes import number
from smallfirst.traffic.task_source import TaskSource

DISCOVERED = "discovered"
"""Folder that `discover` writes to unless another is named."""
DAYS = 30
"""Days that requests and money are counted over."""
LARGE, AUDIT = "large", "audit"
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
    foretold_share: float | None = None
    """What was foretold before it was learnt."""
    promise: str = ""
    """What its certificate promises, in words; empty without one."""
    saved_usd: float | None = None
    """What the large model would have cost more, by its mean cost a request; audits are paid from it."""
    teacher: str = ""
    """The model that it was learnt from."""
    terms: str = ""
    """The teacher's licence, as given in the settings."""
    training_allowed: bool = True
    """False: the teacher's answers only measure."""
    why: str = ""
    """What led to its state."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of HEADING."""
        state = self.state if self.state != "live" else f"live, {self.share:.0%} of requests"
        expected = "foretold " if self.state == "found" and self.small_share is not None else ""
        return (
            self.task,
            f"{self.requests:,}",
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
    totals = ledger.task_totals(since) if ledger else {}
    lines = [
        _learnt(one, {stage: sums for (task, stage), sums in totals.items() if task == name})
        for name, one in takeovers.items()
    ]
    lines += [_found(task, folder) for folder in folders for task in _discovered(folder) if task.name not in takeovers]
    return TaskTable(since=since, tasks=tuple(sorted(lines, key=lambda line: -(line.bill_usd or 0.0))))


def read_task_table(state: Path, discovered: Path, *, days: int = DAYS) -> TaskTable:
    """Return the table of a state folder and a folder of discovered tasks; either may be missing."""
    path = state / "ledger.db"
    ledger = Ledger(path) if path.exists() else None
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


def _learnt(taken: TakeOver, totals: Mapping[str, tuple[int, float]]) -> TaskLine:
    answered = {stage: sums for stage, sums in totals.items() if stage != AUDIT}
    requests = sum(n for n, _ in answered.values())
    small = [sums for stage, sums in answered.items() if stage != LARGE]
    n_small, small_usd = sum(n for n, _ in small), sum(usd for _, usd in small)
    source, audits_usd = TaskSource.of(taken.folder), totals.get(AUDIT, (0, 0.0))[1]
    large_usd = _mean_large_usd(totals.get(LARGE, (0, 0.0)), taken.folder)
    saved = None if large_usd is None else n_small * large_usd - small_usd - audits_usd
    return TaskLine(
        task=taken.task,
        state=taken.state,
        requests=requests,
        bill_usd=sum(usd for _, usd in totals.values()),
        share=taken.share,
        small_share=n_small / requests if requests else None,
        foretold_share=source.foretold_share[0] if source and source.foretold_share else None,
        promise=taken.promise,
        saved_usd=saved,
        why=taken.why,
        **_terms(source),
    )


def _mean_large_usd(measured: tuple[int, float], folder: Path) -> float | None:
    """Return what the large model costs a request: as billed lately, else as in the rows it was learnt from."""
    if measured[0] and measured[1]:
        return measured[1] / measured[0]
    path = folder / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else ()
    costs = [number(json.loads(line).get("cost_usd")) for line in lines if line]
    known = [cost for cost in costs if cost is not None]
    return statistics.fmean(known) if known else None


def _discovered(folder: Path) -> tuple[FoundTask, ...]:
    """Return the tasks in a folder that could move; none if nothing was discovered there."""
    path = folder / "discovery.json"
    try:
        found = Discovery.load(path).tasks if path.exists() else ()
    except ConfigError:  # of another version
        return ()
    return tuple(task for task in found if task.verdict != "stays")


def _found(task: FoundTask, folder: Path) -> TaskLine:
    source = TaskSource.of(folder / task.name)
    share = source.foretold_share[0] if source and source.foretold_share else None
    return TaskLine(
        task=task.name,
        state="found",
        requests=task.requests_per_month,
        bill_usd=task.usd_per_month,
        share=0.0,
        small_share=share,
        foretold_share=share,
        why=task.why,
        **_terms(source),
    )


def _terms(source: TaskSource | None) -> dict[str, str | bool]:
    if source is None:
        return {}
    teacher = source.teacher
    return {"teacher": teacher.model, "terms": teacher.licence, "training_allowed": teacher.training_allowed}
