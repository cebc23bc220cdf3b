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
from typing import Any, BinaryIO, Literal, NamedTuple, Self

from smallfirst.errors import BadAnswer, ConfigError, DataError, RateLimited, SmallfirstError, Unauthorised
from smallfirst.files import try_lock
from smallfirst.improvement.labelling.teacher import Teacher
from smallfirst.models.protocol import Request
from smallfirst.models.recorded.spending_cap import SpendingCap
from smallfirst.pipeline.large_model import SECOND_ANSWER_TEMPERATURE
from smallfirst.progress import ProgressCallback
from smallfirst.records import Record, parse_json_lines


class LabelRequest(NamedTuple):
    """A text to be labelled, for the n-th time."""

    key: str
    """Fingerprint of the teacher, its settings and the text."""
    draw: int
    """0 is asked at temperature 0; later draws are sampled."""


class RequestSent(Record):
    """A request was sent, or turned away before it cost anything."""

    key: str
    draw: int
    worst_usd: float = 0.0
    """Most that it may cost."""


class LabelResponse(Record):
    """An answer arrived."""

    key: str
    draw: int
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

    def paid_usd(self, requests: Collection[LabelRequest]) -> float:
        """Return the cost of the answers to these requests."""
        return sum(self.answers[request].cost_usd for request in requests if request in self.answers)

    def lost_usd(self, requests: Collection[LabelRequest]) -> float:
        """Return the most that may have been paid for those of these requests that brought no answer."""
        return sum(sum(self._pending[request]) for request in requests if request in self._pending)

    def _apply(self, line: LogLine) -> None:
        if entry := line.asked or line.refused or line.said:
            request = LabelRequest(entry.key, entry.draw)
            if line.asked:
                self._pending[request].append(line.asked.worst_usd)
            elif self._pending[request]:
                self._pending[request].pop()
            if line.said:
                self.answers[request] = line.said

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
        self.bad: dict[LabelRequest, BadAnswer] = {}
        self.n_new = 0
        self._n_bad_in_a_row = 0
        self._fatal: SmallfirstError | None = None

    async def send(self, requests: Mapping[LabelRequest, str], progress: ProgressCallback) -> None:
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

    async def _work(self, todo: Iterator[tuple[LabelRequest, str]], report: Callable[[], None]) -> None:
        for request, text in todo:
            worst_usd = self.teacher.worst_usd(text)
            reserved_usd = await self.budget.reserve(worst_usd)
            if reserved_usd is None:
                self.cap_reached, self.refused_usd = True, worst_usd
                return
            if self._is_over:  # another worker stopped while this one waited
                await self.budget.release(reserved_usd, 0.0)
                return
            self.log.write(LogLine(asked=RequestSent(**request._asdict(), worst_usd=reserved_usd)))
            await self.budget.release(reserved_usd, await self._send_one(request, text, reserved_usd))
            report()
            if self._is_over:
                return

    @property
    def _is_over(self) -> bool:
        return self.cap_reached or self._fatal is not None

    async def _send_one(self, request: LabelRequest, text: str, reserved_usd: float) -> float:
        """Return the cost of one request; its worst case where the cost is unknown."""
        asked = Request.ask(text, max_tokens=self.max_tokens)
        if request.draw:
            asked = asked.model_copy(update={"temperature": SECOND_ANSWER_TEMPERATURE, "seed": request.draw})
        try:
            completion = await self.teacher.model.complete(asked)
        except BadAnswer as error:
            self.bad[request] = error
            self._n_bad_in_a_row += 1
            if self._n_bad_in_a_row >= MAX_BAD_IN_A_ROW:
                self._fatal = self._fatal or error
            return reserved_usd
        except (RateLimited, Unauthorised) as error:
            self.log.write(LogLine(refused=RequestSent(**request._asdict())))
            self._fatal = self._fatal or error
            return 0.0
        except SmallfirstError as error:
            self._fatal = self._fatal or error
            return reserved_usd
        known = completion.model_dump(include=set(LabelResponse.model_fields) - {"text"})
        said = {**request._asdict(), **known, "text": text, "answer": completion.text}
        said["on"] = datetime.now(UTC).date().isoformat()
        self.log.write(LogLine(said=LabelResponse.model_validate(said)))
        self.n_new, self._n_bad_in_a_row = self.n_new + 1, 0
        return completion.cost_usd
