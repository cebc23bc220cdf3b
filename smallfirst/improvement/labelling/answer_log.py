"""Every request and every answer on disk before the next step, so that nothing is paid twice and no cent is forgotten.

A line is written before a request goes out and another one when its answer is there. A request without an answer may
have been paid for, so it counts at its worst case. The price is two flushes to disk for each answer: milliseconds
beside the seconds that an answer takes.
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
from smallfirst.records import Record


class LabelRequest(NamedTuple):
    """One question to the teacher: which text, and the how manieth time."""

    key: str
    """Fingerprint of the way of asking and the text."""
    draw: int
    """0 is asked at temperature 0; later ones are sampled."""


class RequestSent(Record):
    """A request went out."""

    key: str
    """The errand's key."""
    draw: int
    """The errand's draw."""
    worst_usd: float
    """Most that it may cost."""


class RequestRejected(Record):
    """A request was turned away before it cost anything."""

    key: str
    """The errand's key."""
    draw: int
    """The errand's draw."""


class LabelResponse(Record):
    """An answer came."""

    key: str
    """The errand's key."""
    draw: int
    """The errand's draw."""
    text: str
    """What was asked, for readers."""
    answer: str
    """What the teacher said."""
    confidence: float | None
    """Its own confidence, in [0, 1]; None if it gives none."""
    cost_usd: float
    """What the answer cost."""
    prompt_tokens: int
    """Tokens read."""
    completion_tokens: int
    """Tokens written."""
    finish_reason: Literal["stop", "length"]
    """Why the answer ended."""
    answered_by: str
    """Name of the model."""
    on: str
    """Date of the answer in UTC, YYYY-MM-DD."""


_KINDS: dict[str, type[RequestSent] | type[RequestRejected] | type[LabelResponse]] = {
    "asked": RequestSent,
    "refused": RequestRejected,
    "said": LabelResponse,
}


class AnswerLog:
    """What was asked and answered in one way, over all runs; open in one process at a time."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.answers: dict[LabelRequest, LabelResponse] = {}
        self._pending: dict[LabelRequest, list[float]] = defaultdict(list)
        self._file = file

    @classmethod
    @contextmanager
    def open(cls, path: Path, about: dict[str, Any]) -> Iterator[Self]:
        """The journal at `path`, begun with a line `about` the way of asking; a line cut short by a crash is dropped.

        Raises ConfigError if another process has it open, DataError if a whole line of it cannot be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _lock(path, file)
            journal = cls(path, file)
            journal._read()
            if file.tell() == 0:
                journal._append({"journal": about})
            yield journal

    def asked(self, errand: LabelRequest, worst_usd: float) -> None:
        """A request goes out now."""
        self._note(RequestSent(key=errand.key, draw=errand.draw, worst_usd=worst_usd))

    def refused(self, errand: LabelRequest) -> None:
        """It was turned away and cost nothing."""
        self._note(RequestRejected(key=errand.key, draw=errand.draw))

    def said(self, answer: LabelResponse) -> None:
        """Its answer is there."""
        self._note(answer)

    def paid_usd(self, errands: Collection[LabelRequest]) -> float:
        """What the answers to these errands have cost."""
        return sum(self.answers[errand].cost_usd for errand in errands if errand in self.answers)

    def lost_usd(self, errands: Collection[LabelRequest]) -> float:
        """Most that may have been paid for requests of these errands that brought no answer."""
        return sum(sum(self._pending[errand]) for errand in errands if errand in self._pending)

    def _note(self, entry: RequestSent | RequestRejected | LabelResponse) -> None:
        kind = next(name for name, record in _KINDS.items() if isinstance(entry, record))
        self._append({kind: entry.model_dump(mode="json")})
        self._take(entry)

    def _take(self, entry: RequestSent | RequestRejected | LabelResponse) -> None:
        errand = LabelRequest(entry.key, entry.draw)
        if isinstance(entry, RequestSent):
            self._pending[errand].append(entry.worst_usd)
            return
        if self._pending[errand]:
            self._pending[errand].pop()
        if isinstance(entry, LabelResponse):
            self.answers[errand] = entry

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)
        problems = []
        for number, line in enumerate(content[:whole].split(b"\n"), start=1):
            try:
                if line.strip():
                    self._take_line(json.loads(line))
            except (ValueError, TypeError) as error:
                problems.append(Problem(str(self.path), number, f"no line of a journal: {str(error).splitlines()[0]}"))
        if problems:
            raise DataError(f"{self.path} was changed by hand", problems, hint="mend these lines, or delete them")

    def _take_line(self, line: Any) -> None:
        if not isinstance(line, dict) or len(line) != 1:
            raise ValueError("must be an object with one key")
        ((kind, values),) = line.items()
        if kind != "journal":
            if kind not in _KINDS:
                raise ValueError(f'unknown kind "{kind}"')
            self._take(_KINDS[kind].model_validate(values))


def _lock(path: Path, file: BinaryIO) -> None:
    """Hold the file against other processes until it is closed, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(
            f"{path} is in use: another run is labelling in the same way",
            hint="wait for it to end; together they could spend more than a cap allows",
        ) from None
