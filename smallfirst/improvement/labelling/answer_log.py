"""Ask the teacher under a cost cap, and log every request and every answer to disk before the next step.

So nothing is paid for twice, and the amounts paid never exceed the cap. A request without an answer may have been paid
for, so it counts at its worst case.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from smallfirst.errors import BadAnswer, ConfigError, DataError, RateLimited, SmallfirstError, Unauthorised
from smallfirst.files import try_lock
from smallfirst.improvement.labelling.teacher import Teacher
from smallfirst.models.protocol import Request
from smallfirst.models.recorded.spending_cap import SpendingCap
from smallfirst.progress import ProgressCallback
from smallfirst.records import Record, parse_json_lines


class RequestSent(Record):
    """A request was sent, or turned away before it cost anything."""

    key: str
    """Fingerprint of the teacher, its settings and the text."""
    worst_usd: float = 0.0
    """Most that it may cost."""


class LabelResponse(Record):
    """An answer arrived."""

    key: str
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


class LogLine(Record):
    """A line of the file: one of these."""

    journal: dict[str, Any] | None = None
    """The teacher; the first line."""
    asked: RequestSent | None = None
    refused: RequestSent | None = None
    said: LabelResponse | None = None


class AnswerLog:
    """The requests and answers of one teacher with one prompt, over all runs; open in one process at a time."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.answers: dict[str, LabelResponse] = {}
        self._pending: dict[str, list[float]] = defaultdict(list)
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
                    log.write(LogLine(journal=about))
                yield log
        finally:
            os.close(lock)

    def write(self, line: LogLine) -> None:
        """Write a line to disk, then count it."""
        self._file.write(line.model_dump_json(exclude_unset=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(line)

    def paid_usd(self, requests: Collection[str]) -> float:
        """Return the cost of the answers to these requests."""
        return sum(self.answers[request].cost_usd for request in requests if request in self.answers)

    def lost_usd(self, requests: Collection[str]) -> float:
        """Return the most that may have been paid for those of these requests that brought no answer."""
        return sum(sum(self._pending[request]) for request in requests if request in self._pending)

    def _apply(self, line: LogLine) -> None:
        if entry := line.asked or line.refused or line.said:
            if line.asked:
                self._pending[entry.key].append(line.asked.worst_usd)
            elif self._pending[entry.key]:
                self._pending[entry.key].pop()
            if line.said:
                self.answers[entry.key] = line.said

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        complete = content.rfind(b"\n") + 1
        self._file.truncate(complete)
        self._file.seek(0, os.SEEK_END)
        lines, problems = parse_json_lines(LogLine, content[:complete].decode(errors="replace"), str(self.path))
        if problems:
            raise DataError(f"{self.path} was edited by hand", problems, hint="correct these lines, or delete them")
        for _, line in lines:
            self._apply(line)


MAX_BAD_IN_A_ROW = 20
"""Consecutive requests without a usable answer that end a run; each may have cost something."""


class LabelRequests:
    """Send requests with as many workers as the teacher accepts in parallel."""

    def __init__(self, teacher: Teacher, log: AnswerLog, budget: SpendingCap, *, max_tokens: int) -> None:
        self.teacher, self.log, self.budget, self.max_tokens = teacher, log, budget, max_tokens
        self.cap_reached = False
        self.refused_usd = 0.0
        """Worst case of the request that the cap refused."""
        self.bad: dict[str, BadAnswer] = {}
        self.n_new = 0
        self._n_bad_in_a_row = 0
        self._fatal: SmallfirstError | None = None

    async def send(self, requests: Mapping[str, str], progress: ProgressCallback) -> None:
        """Send the requests that the log has no answer to, until all are done or the cap is reached.

        Requests without a usable answer are kept in `bad`. Raise any other error of the model after the requests in
        flight have ended; every answer is in the log by then.
        """
        missing = [(r, text) for r, text in requests.items() if r not in self.log.answers and r not in self.bad]
        n_earlier = len(requests) - len(missing) - self.n_new

        def report() -> None:
            progress(n_earlier + self.n_new, len(requests), f"${self.budget.spent_usd:.4f}")

        report()
        todo = iter(missing)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.teacher.max_concurrency):
                group.create_task(self._work(todo, report))
        if self._fatal is not None:
            raise self._fatal

    async def _work(self, todo: Iterator[tuple[str, str]], report: Callable[[], None]) -> None:
        for request, text in todo:
            worst_usd = self.teacher.worst_usd(text)
            reserved_usd = await self.budget.reserve(worst_usd)
            if reserved_usd is None:
                self.cap_reached, self.refused_usd = True, worst_usd
                return
            if self._is_over:  # another worker stopped while this one waited
                await self.budget.release(reserved_usd, 0.0)
                return
            self.log.write(LogLine(asked=RequestSent(key=request, worst_usd=reserved_usd)))
            await self.budget.release(reserved_usd, await self._send_one(request, text, reserved_usd))
            report()
            if self._is_over:
                return

    @property
    def _is_over(self) -> bool:
        return self.cap_reached or self._fatal is not None

    async def _send_one(self, request: str, text: str, reserved_usd: float) -> float:
        """Return the cost of one request; its worst case where the cost is unknown."""
        asked = Request.ask(text, max_tokens=self.max_tokens)
        try:
            completion = await self.teacher.model.complete(asked)
        except BadAnswer as error:
            self.bad[request] = error
            self._n_bad_in_a_row += 1
            if self._n_bad_in_a_row >= MAX_BAD_IN_A_ROW:
                self._fatal = self._fatal or error
            return reserved_usd
        except (RateLimited, Unauthorised) as error:
            self.log.write(LogLine(refused=RequestSent(key=request)))
            self._fatal = self._fatal or error
            return 0.0
        except SmallfirstError as error:
            self._fatal = self._fatal or error
            return reserved_usd
        known = completion.model_dump(include=set(LabelResponse.model_fields) - {"text"})
        said = {**known, "key": request, "text": text, "answer": completion.text}
        said["on"] = datetime.now(UTC).date().isoformat()
        self.log.write(LogLine(said=LabelResponse.model_validate(said)))
        self.n_new, self._n_bad_in_a_row = self.n_new + 1, 0
        return completion.cost_usd
