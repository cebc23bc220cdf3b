"""Record a model's answers as they arrive, and replay them as a Model.

A recording is JSON Lines: a header, then one row for each request. A run sends only the requests that are missing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic
import pydantic_core
from pydantic import Field

from smallfirst.base.errors import BadAnswer, DataError, NotRecorded, Problem, SmallfirstError, SpendingLimitReached
from smallfirst.base.files import write_atomically
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.base.records import Record, fingerprint, parse_record
from smallfirst.data.dataset import Message
from smallfirst.models.pricing import TokenUsage, Usd, format_usd, stated
from smallfirst.models.protocol import CallableModel, Capability, Completion, Model, Request

CONCURRENCY = 2
"""Requests in flight while answers are recorded."""
MAX_BAD_IN_A_ROW = 20
"""Requests in a row without a usable answer that end a recording: each may have cost something."""


class RecordingHeader(Record):
    """The header of a recording: how it was made."""

    model: str
    made_at: str
    """Date of its first answer, YYYY-MM-DD."""
    smallfirst: str
    command: str = ""
    settings: dict[str, Any] = {}
    """Settings of the model that change its answers."""
    prompt: tuple[Message, ...] | str = ""
    """Instructions before the user's text; a description if they differ by request."""
    machine: str = ""
    n: int
    """Different requests of a complete recording."""


class _FirstLine(Record):
    recorded: RecordingHeader


class RecordedAnswer(Record):
    """One row of a recording."""

    key: str
    """Fingerprint of the request's messages."""
    text: str
    """The user's text, for people who read the file."""
    answer: str
    prompt_tokens: Annotated[int, Field(ge=0)]
    cached_tokens: Annotated[int, Field(ge=0)] = 0
    """Of these, those that the provider read from its cache."""
    completion_tokens: Annotated[int, Field(ge=0)]
    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    cost_usd: Usd
    finish_reason: Literal["stop", "length"] = "stop"
    """Why generation ended."""
    confidence: float | None = None
    """The model's own, in [0, 1]; None if it gave none."""


MEASURED = {"prompt_tokens", "completion_tokens", "latency_ms", "cost_usd", "finish_reason"}
"""Fields that a RecordedAnswer and a Completion have in common."""


def request_key(request: Request) -> str:
    """Return 16 hex digits that depend on the messages alone; sampling settings are in the header."""
    return fingerprint([[message.role, message.content] for message in request.messages])


class ReplayModel(CallableModel):
    """Answers recorded requests, and refuses all others."""

    capabilities: frozenset[Capability] = frozenset({Capability.CHOSEN})
    """A recording holds whole answers without probabilities."""

    def __init__(self, header: RecordingHeader, answers: Iterable[RecordedAnswer], *, path: str) -> None:
        self.header, self.path = header, path
        self._answers = {answer.key: answer for answer in answers}

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(*read_recording(path), path=str(path))

    @property
    def name(self) -> str:
        return self.header.model

    @property
    def note(self) -> str:
        """When and by which model the answers were made; shown beside every number from them."""
        n, meant = len(self._answers), self.header.n
        count = f"n={n}" if n >= meant else f"n={n} of {meant}, unfinished"
        return f"recorded {self.header.made_at} from {self.name} ({count})"

    async def complete(self, request: Request) -> Completion:
        row = self._answers.get(request_key(request))
        if row is None:
            raise NotRecorded(
                f'{self.path} has no answer of {self.name} to "{request.text[:80]}"',
                hint="record it: smallfirst record (sends only what is missing)",
                reason=f"a recording of {self.name} stands for it and has no answer to this request",
            )
        tokens = TokenUsage(**row.model_dump(include={"prompt_tokens", "cached_tokens", "completion_tokens"}))
        charge = stated(self.name, row.cost_usd, tokens=tokens, source=f"recorded {self.header.made_at}")
        measured = row.model_dump(include=MEASURED)
        return Completion(text=row.answer, answered_by=self.name, charges=(charge,), **measured)

    def with_silence_on(self, other: ReplayModel) -> ReplayModel:
        """Return a model that also answers the requests of `other`, with nothing at their cost and latency.

        So a Router is measured that takes labelled rows for open-ended requests.
        """
        silent = (row.model_copy(update={"answer": ""}) for row in other._answers.values())
        return ReplayModel(self.header, (*silent, *self._answers.values()), path=self.path)


def read_recording(path: Path) -> tuple[RecordingHeader, tuple[RecordedAnswer, ...]]:
    """Return header and rows of the recording at `path`. Raise DataError naming every malformed line."""
    if not path.is_file():
        raise DataError(f"{path}: no such recording", hint="make it: smallfirst record")
    header: RecordingHeader | None = None
    rows: list[RecordedAnswer] = []
    problems: list[Problem] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = pydantic_core.from_json(line, allow_inf_nan=False)  # refuses lone surrogates too
            if header is None:
                header = _FirstLine.model_validate(values).recorded
            else:
                rows.append(RecordedAnswer.model_validate(values))
        except ValueError as error:
            problems.append(Problem(str(path), number, _explain(error)))
            if header is None:  # without a header the rows mean nothing
                break
    if header is None and not problems:
        problems.append(Problem(str(path), 1, "the file is empty"))
    if header is None or problems:
        raise DataError(
            f"{path} is not a complete recording",
            problems,
            hint="run smallfirst record again: it drops a partial last row and continues",
        )
    return header, tuple(rows)


def _explain(error: ValueError) -> str:
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
    return str(error).replace(" at line 1", ",")


class SpendingCap:
    """Amounts paid and reserved under a cap; None is no cap.

    The worst case of a request is reserved before it is sent and released when its cost is known. So the sum of paid
    and reserved amounts never exceeds the cap, whatever the answers cost.
    """

    def __init__(self, cap_usd: float | None, spent_usd: float = 0.0) -> None:
        self.cap_usd = cap_usd
        self.spent_usd = spent_usd
        self.max_usd = 0.0
        self._reserved: list[float] = []
        self._changed = asyncio.Condition()

    async def reserve(self, worst_usd: float) -> float | None:
        """Return the amount reserved for a request; None if the cap leaves too little.

        Wait while other requests may still release something. Once an answer has cost more than its worst case, that
        amount is reserved for every request.
        """
        async with self._changed:
            while True:
                amount = max(worst_usd, self.max_usd)
                if self.cap_usd is None or self.spent_usd + sum(self._reserved) + amount <= self.cap_usd:
                    self._reserved.append(amount)
                    return amount
                if not self._reserved:
                    return None
                await self._changed.wait()

    async def release(self, reserved_usd: float, paid_usd: float) -> None:
        async with self._changed:
            self._reserved.remove(reserved_usd)
            self.spent_usd += paid_usd
            if paid_usd > reserved_usd:
                self.max_usd = max(self.max_usd, paid_usd)
            self._changed.notify_all()


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
    """Write the header, without a row that a killed run was writing; return the keys of the answers that are there."""
    values = {**header, "model": model.name, "n": len(wanted)}
    new = parse_record(RecordingHeader, values, where="header of the recording")
    rows: tuple[RecordedAnswer, ...] = ()
    content = path.read_bytes() if path.exists() else b""
    if content:
        if not content.endswith(b"\n") and b"\n" in content:
            write_atomically(path, content[: content.rindex(b"\n") + 1])
        old, rows = read_recording(path)
        was, now = old.model_dump(mode="json"), new.model_dump(mode="json")
        for field in ("model", "settings", "prompt"):
            if was[field] != now[field]:
                raise DataError(
                    f"{path} was recorded with another {field}; one file must not mix the answers of both",
                    hint="record into another file, or delete this one",
                )
        new = old.model_copy(update={"n": len(wanted | {row.key for row in rows})})
    lines = [_line({"recorded": new.model_dump(mode="json")}), *(_line(row.model_dump()) for row in rows)]
    write_atomically(path, "".join(lines).encode())
    return {row.key for row in rows}


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
