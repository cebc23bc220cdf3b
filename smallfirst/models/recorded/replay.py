"""Replay recorded answers as a Model. A recording is JSON Lines: a header, then one row for each request."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import pydantic_core
from pydantic import Field

from smallfirst.data.dataset import Message
from smallfirst.errors import DataError, NotRecorded, Problem
from smallfirst.models.protocol import Capability, Completion, Request
from smallfirst.models.wrappers import CallableModel
from smallfirst.pricing.charge import stated
from smallfirst.pricing.money import Usd
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import Record, fingerprint


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


class RecordedAnswer(Record):
    """One row of a recording."""

    key: str
    """Fingerprint of the request's messages."""
    text: str
    """The user's text, for people who read the file."""
    answer: str
    prompt_tokens: Annotated[int, Field(ge=0)]
    cached_tokens: Annotated[int, Field(ge=0)] = 0
    """Of these, those that the provider read from its cache; 0 in older recordings."""
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
        self.header = header
        self.path = path
        self._answers = {answer.key: answer for answer in answers}

    @classmethod
    def load(cls, path: Path) -> Self:
        header, answers = read_recording(path)
        return cls(header, answers, path=str(path))

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


def read_recording(path: Path) -> tuple[RecordingHeader, tuple[RecordedAnswer, ...]]:
    """Return header and rows of the recording at `path`. Raise DataError naming every malformed line."""
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
            values = _from_json(line)
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
            f"{path} is not a complete recording",
            problems,
            hint="run smallfirst record again: it drops a partial last row and continues",
        )
    return header, tuple(rows)


def _from_json(line: str) -> Any:
    try:
        return pydantic_core.from_json(line, allow_inf_nan=False)  # refuses lone surrogates too
    except ValueError as error:
        raise ValueError(f"not JSON: {str(error).replace(' at line 1', ',')}") from None


def _header_values(values: object) -> object:
    if not isinstance(values, dict) or set(values) != {"recorded"}:
        raise ValueError('the first line must be {"recorded": {…}}')
    return values["recorded"]


def _explain(error: ValueError) -> str:
    if isinstance(error, pydantic.ValidationError):
        parts = (f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
        return "; ".join(parts)
    return str(error)
