"""Log every request and every answer to disk before the next step, so that nothing is paid for twice.

A request without an answer may have been paid for, so it counts at its worst case.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self

from smallfirst.errors import ConfigError, DataError, Problem
from smallfirst.files import try_lock
from smallfirst.records import Record


class LabelRequest(NamedTuple):
    """A text to be labelled, for the n-th time."""

    key: str
    """Fingerprint of the teacher, its settings and the text."""
    draw: int
    """0 is asked at temperature 0; later draws are sampled."""


class _Event(Record):
    key: str
    draw: int


class RequestSent(_Event):
    """A request was sent."""

    worst_usd: float
    """Most that it may cost."""


class RequestRejected(_Event):
    """A request was rejected before it cost anything."""


class LabelResponse(_Event):
    """An answer arrived."""

    text: str
    """The labelled text, for readers of the file."""
    answer: str
    confidence: float | None
    """The teacher's confidence, in [0, 1]; None if it gives none."""
    cost_usd: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    answered_by: str
    on: str
    """Date of the answer in UTC, YYYY-MM-DD."""


Entry = RequestSent | RequestRejected | LabelResponse
_KINDS: dict[str, type[Entry]] = {"asked": RequestSent, "refused": RequestRejected, "said": LabelResponse}
"""Record by its key in the file."""


class AnswerLog:
    """The requests and answers of one teacher with one prompt, over all runs; open in one process at a time."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.answers: dict[LabelRequest, LabelResponse] = {}
        self._pending: dict[LabelRequest, list[float]] = defaultdict(list)
        self._file = file

    @classmethod
    @contextmanager
    def open(cls, path: Path, about: dict[str, Any]) -> Iterator[Self]:
        """Open the log at `path`; a new one starts with a line `about` the teacher. A line cut off by a crash is lost.

        Raise ConfigError if another process has it open, DataError if a complete line cannot be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(path.with_suffix(".lock"))
        if lock is None:
            raise ConfigError(
                f"{path} is in use: another run is labelling with the same teacher and prompt",
                hint="wait for it to end; together the two could exceed the cap",
            )
        try:
            with path.open("a+b") as file:
                log = cls(path, file)
                log._read()
                if file.tell() == 0:
                    log._append({"journal": about})
                yield log
        finally:
            os.close(lock)

    def write(self, entry: Entry) -> None:
        kind = next(name for name, record in _KINDS.items() if isinstance(entry, record))
        self._append({kind: entry.model_dump(mode="json")})
        self._apply(entry)

    def paid_usd(self, requests: Collection[LabelRequest]) -> float:
        """Return the cost of the answers to these requests."""
        return sum(self.answers[request].cost_usd for request in requests if request in self.answers)

    def lost_usd(self, requests: Collection[LabelRequest]) -> float:
        """Return the most that may have been paid for those of these requests that brought no answer."""
        return sum(sum(self._pending[request]) for request in requests if request in self._pending)

    def _apply(self, entry: Entry) -> None:
        request = LabelRequest(entry.key, entry.draw)
        if isinstance(entry, RequestSent):
            self._pending[request].append(entry.worst_usd)
            return
        if self._pending[request]:
            self._pending[request].pop()
        if isinstance(entry, LabelResponse):
            self.answers[request] = entry

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        complete = content.rfind(b"\n") + 1
        self._file.truncate(complete)
        self._file.seek(0, os.SEEK_END)
        problems = []
        for number, line in enumerate(content[:complete].split(b"\n"), start=1):
            try:
                if line.strip():
                    self._apply_line(json.loads(line))
            except (ValueError, TypeError) as error:
                rule = f"not a line of an answer log: {str(error).splitlines()[0]}"
                problems.append(Problem(str(self.path), number, rule))
        if problems:
            raise DataError(f"{self.path} was edited by hand", problems, hint="correct these lines, or delete them")

    def _apply_line(self, line: Any) -> None:
        if not isinstance(line, dict) or len(line) != 1:
            raise ValueError("must be an object with one key")
        ((kind, values),) = line.items()
        if kind != "journal":
            if kind not in _KINDS:
                raise ValueError(f'unknown kind "{kind}"')
            self._apply(_KINDS[kind].model_validate(values))
