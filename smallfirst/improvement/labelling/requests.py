"""Send requests to the teacher under a cost cap, which the amounts paid never exceed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from smallfirst.errors import BadAnswer, RateLimited, SmallfirstError, Unauthorised
from smallfirst.improvement.labelling.answer_log import (
    AnswerLog,
    LabelRequest,
    LabelResponse,
    RequestRejected,
    RequestSent,
)
from smallfirst.improvement.labelling.teacher import Teacher
from smallfirst.models.protocol import Request
from smallfirst.models.recorded.spending_cap import SpendingCap
from smallfirst.pipeline.large_model import SECOND_ANSWER_TEMPERATURE
from smallfirst.progress import ProgressCallback

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
            self.log.write(RequestSent(key=request.key, draw=request.draw, worst_usd=reserved_usd))
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
            self.log.write(RequestRejected(key=request.key, draw=request.draw))
            self._fatal = self._fatal or error
            return 0.0
        except SmallfirstError as error:
            self._fatal = self._fatal or error
            return reserved_usd
        fields = ("confidence", "cost_usd", "prompt_tokens", "completion_tokens", "finish_reason", "answered_by")
        self.log.write(
            LabelResponse(
                key=request.key,
                draw=request.draw,
                text=text,
                answer=completion.text,
                on=datetime.now(UTC).date().isoformat(),
                **{name: getattr(completion, name) for name in fields},
            )
        )
        self.n_new, self._n_bad_in_a_row = self.n_new + 1, 0
        return completion.cost_usd
