"""Record a model's answers as they arrive; a run sends only the requests that are missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.errors import BadAnswer, DataError, SmallfirstError, SpendingLimitReached
from smallfirst.files import write_atomically
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.recorded.replay import MEASURED, RecordedAnswer, RecordingHeader, read_recording, request_key
from smallfirst.models.recorded.spending_cap import SpendingCap
from smallfirst.pricing.money import format_usd
from smallfirst.progress import ProgressCallback, no_progress
from smallfirst.records import parse_record

CONCURRENCY = 2
"""Requests in flight."""
MAX_BAD_IN_A_ROW = 20
"""Requests in a row without a usable answer that end a recording: each may have cost something."""


class Spending(NamedTuple):
    """What answers may cost."""

    cap: SpendingCap
    worst_usd: Callable[[str], float]
    """Most that one answer to a text may cost."""


async def record(
    model: Model,
    requests: Sequence[Request],
    path: Path,
    *,
    header: dict[str, Any],
    concurrency: int = CONCURRENCY,
    progress: ProgressCallback = no_progress,
    spending: Spending | None = None,
) -> int:
    """Append the answers that `path` lacks and return their number; equal requests are sent once.

    A BadAnswer is skipped and raised at the end, or after MAX_BAD_IN_A_ROW of them. Raise DataError if `path` is of
    another model or other settings, SpendingLimitReached before a request that might cost more than `spending` allows.
    """
    wanted = {request_key(request): request for request in requests}
    known = _prepare(path, model, header, set(wanted))
    missing = iter([(key, request) for key, request in wanted.items() if key not in known])
    n_done = n_known = len(wanted.keys() & known)
    n_bad_in_a_row = 0
    bad: list[BadAnswer] = []
    fatal: list[SmallfirstError] = []

    async def work() -> None:
        nonlocal n_done, n_bad_in_a_row
        for key, request in missing:
            if fatal or n_bad_in_a_row >= MAX_BAD_IN_A_ROW:
                return
            try:
                completion = await _complete(model, request, spending)
            except BadAnswer as error:
                bad.append(error)
                n_bad_in_a_row += 1
                continue
            except SmallfirstError as error:
                fatal.append(error)
                return
            measured = completion.model_dump(include=MEASURED) | {"latency_ms": round(completion.latency_ms, 1)}
            measured |= {"cached_tokens": completion.cached_tokens, "confidence": completion.confidence}
            row = RecordedAnswer(key=key, text=request.text, answer=completion.text, **measured)
            file.write(_line(row.model_dump()))
            file.flush()
            n_done, n_bad_in_a_row = n_done + 1, 0
            progress(n_done, len(wanted))

    progress(n_done, len(wanted))
    with path.open("a", encoding="utf-8") as file:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    if fatal:
        raise fatal[0]
    if bad:
        raise BadAnswer(
            f"{len(bad)} of {len(wanted)} requests got no answer; the others are in {path}. The first: {bad[0]}",
            hint="run the same command again to send only those",
        )
    return n_done - n_known


async def _complete(model: Model, request: Request, spending: Spending | None) -> Completion:
    if spending is None:
        return await model.complete(request)
    paid_usd = worst_usd = spending.worst_usd(request.text)
    reserved_usd = await spending.cap.reserve(worst_usd)
    if reserved_usd is None:
        spent, most = format_usd(spending.cap.spent_usd), format_usd(spending.cap.cap_usd or 0.0)
        raise SpendingLimitReached(
            f"{spent} is spent and the next answer may cost up to {format_usd(worst_usd)}: large.max_usd is {most}",
            hint="raise large.max_usd, or run with --max-usd, and run again: the answers so far are kept",
        )
    try:
        completion = await model.complete(request)
        paid_usd = completion.cost_usd
        return completion
    finally:
        await spending.cap.release(reserved_usd, paid_usd)


def _prepare(path: Path, model: Model, header: dict[str, Any], wanted: set[str]) -> set[str]:
    values = {**header, "model": model.name, "n": len(wanted)}
    new = parse_record(RecordingHeader, values, where="header of the recording")
    rows: tuple[RecordedAnswer, ...] = ()
    content = path.read_bytes() if path.exists() else b""
    if content:
        if not content.endswith(b"\n") and b"\n" in content:  # the row that a killed run was writing
            write_atomically(path, content[: content.rindex(b"\n") + 1])
        old, rows = read_recording(path)
        _check_same(path, old, new)
        new = old.model_copy(update={"n": len(wanted | {row.key for row in rows})})
    lines = [_line({"recorded": new.model_dump(mode="json")}), *(_line(row.model_dump()) for row in rows)]
    write_atomically(path, "".join(lines).encode())
    return {row.key for row in rows}


def _check_same(path: Path, old: RecordingHeader, new: RecordingHeader) -> None:
    was, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    for field in ("model", "settings", "prompt"):
        if was[field] != now[field]:
            difference = f'"{was[field]}", not "{now[field]}"' if field == "model" else "another one"
            raise DataError(
                f"{path} was recorded with {difference} as {field}; one file must not mix the answers of both",
                hint="record into another file, or delete this one",
            )


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
