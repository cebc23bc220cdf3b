"""Recorded answers as a Model: a large model's answers without paying for them again.

A recording is JSON Lines: one header that says by whom, when and how it was made, then one row per
request. Replaying is exact and instant; the price is that only recorded requests have an answer,
and that the answers are as old as the header says.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pydantic

from smallfirst.data.dataset import Message
from smallfirst.errors import BadAnswer, DataError, Problem
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.records import Record, fingerprint

R = TypeVar("R", bound=Record)


class RecordingHeader(Record):
    """The header of a recording: what one must know to believe it."""

    model: str
    """Name of the model that answered."""
    made_at: str
    """Date on which it was begun, YYYY-MM-DD."""
    smallfirst: str
    """Version of smallfirst that recorded it."""
    command: str = ""
    """The command that made it."""
    settings: dict[str, Any] = {}
    """Settings of the model that change its answers."""
    prompt: tuple[Message, ...] | str = ""
    """Instructions shown before the user's text; a description if they differ by request."""
    machine: str = ""
    """Where it ran; the latencies hold for this machine."""
    n: int
    """How many different requests it is meant to hold."""


class RecordedAnswer(Record):
    """One row of a recording."""

    key: str
    """Fingerprint of the request's messages."""
    text: str
    """The user's text, for readers; not used to find the row."""
    answer: str
    """What the model answered."""
    prompt_tokens: int
    """Tokens read."""
    completion_tokens: int
    """Tokens written."""
    latency_ms: float
    """Time taken when it was recorded."""
    cost_usd: float
    """Cost when it was recorded."""
    finish_reason: Literal["stop", "length"] = "stop"
    """Why the answer ended."""


def request_key(request: Request) -> str:
    """16 hex digits from the messages alone; sampling settings belong to the header."""
    return fingerprint([[message.role, message.content] for message in request.messages])


class ReplayModel:
    """Answers what was recorded, and refuses everything else."""

    capabilities: frozenset[Capability] = frozenset()
    """What it can do beyond answering."""

    def __init__(self, header: RecordingHeader, answers: Iterable[RecordedAnswer], *, path: str) -> None:
        """A model that answers from `answers`; `path` is named in errors."""
        self.header = header
        self.path = path
        self._answers = {answer.key: answer for answer in answers}

    @classmethod
    def load(cls, path: Path) -> Self:
        """The recording at `path`. Raises DataError with every line that is wrong."""
        header, answers = read_recording(path)
        return cls(header, answers, path=str(path))

    @property
    def name(self) -> str:
        """Name of the model that was recorded."""
        return self.header.model

    @property
    def note(self) -> str:
        """When and by whom the answers were made, to stand beside every number from them."""
        n, meant = len(self._answers), self.header.n
        count = f"n={n}" if n >= meant else f"n={n} of {meant}, unfinished"
        return f"recorded {self.header.made_at} from {self.name} ({count})"

    async def complete(self, request: Request) -> Completion:
        """The recorded answer, at once, with the tokens, cost and latency of its recording."""
        row = self._answers.get(request_key(request))
        if row is None:
            raise BadAnswer(
                f'{self.path} holds no answer of {self.name} to "{request.text[:80]}"',
                hint="record it: smallfirst record (asks only what is missing)",
            )
        return Completion(
            text=row.answer,
            answered_by=self.name,
            latency_ms=row.latency_ms,
            cost_usd=row.cost_usd,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            finish_reason=row.finish_reason,
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The recorded answer in one piece."""
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        """Nothing to free."""


def read_recording(path: Path) -> tuple[RecordingHeader, tuple[RecordedAnswer, ...]]:
    """Header and rows of the recording at `path`. Raises DataError with every wrong line."""
    if not path.is_file():
        raise DataError(f"{path}: no such recording", hint="make it: smallfirst record")
    lines = path.read_text(encoding="utf-8").split("\n")
    header: RecordingHeader | None = None
    rows: list[RecordedAnswer] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if header is None:
                header = RecordingHeader.model_validate(_header_values(values))
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
            f"{path} is no whole recording",
            problems,
            hint="run smallfirst record again: it drops a half-written last row and goes on",
        )
    return header, tuple(rows)


def _header_values(values: object) -> object:
    if not isinstance(values, dict) or set(values) != {"recorded"}:
        raise ValueError('the first line must be {"recorded": {…}}')
    return values["recorded"]


def _explain(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    if isinstance(error, pydantic.ValidationError):
        parts = (f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
        return "; ".join(parts)
    return str(error)
