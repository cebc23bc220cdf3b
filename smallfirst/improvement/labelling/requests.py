"""Asking under a cap: what may be in flight at once, what it may cost at worst, and when to stop.

Before a request goes out its worst case is set aside, and what it did not take is given back. So the sum of what was
paid and what is still on its way never passes the cap, whatever the answers turn out to cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from smallfirst.errors import BadAnswer, RateLimited, SmallfirstError, Unauthorised
from smallfirst.improvement.labelling.answer_log import AnswerLog, LabelRequest, LabelResponse
from smallfirst.improvement.labelling.labeller import Labeller
from smallfirst.models.protocol import Completion, Request
from smallfirst.pipeline.large_model import SECOND_ANSWER_TEMPERATURE
from smallfirst.progress import ProgressCallback

MAX_BAD_IN_A_ROW = 20
"""So many requests in a row without a usable answer end a run: each may have cost something."""


class BudgetTracker:
    """Money under a cap."""

    def __init__(self, cap_usd: float | None, spent_usd: float = 0.0) -> None:
        """A purse from which `spent_usd` was taken already; without a cap it never runs dry."""
        self.cap_usd = cap_usd
        self.spent_usd = spent_usd
        self.dearest_usd = 0.0
        self._held: list[float] = []
        self._changed = asyncio.Condition()

    async def take(self, worst_usd: float) -> float | None:
        """What was set aside for a request; None if there is too little even with nothing under way.

        Waits while requests under way may still give something back. If an answer has cost more than its worst case,
        that is set aside from then on: who charges too much once may do so again.
        """
        async with self._changed:
            while True:
                wanted = max(worst_usd, self.dearest_usd)
                if self.cap_usd is None or self.spent_usd + sum(self._held) + wanted <= self.cap_usd:
                    self._held.append(wanted)
                    return wanted
                if not self._held:
                    return None
                await self._changed.wait()

    async def settle(self, held_usd: float, paid_usd: float) -> None:
        """Give back what was set aside but for what was paid."""
        async with self._changed:
            self._held.remove(held_usd)
            self.spent_usd += paid_usd
            if paid_usd > held_usd:
                self.dearest_usd = max(self.dearest_usd, paid_usd)
            self._changed.notify_all()


class LabelRequests:
    """Errands done one after the other by as many workers as the teacher takes side by side."""

    def __init__(self, teacher: Labeller, journal: AnswerLog, purse: BudgetTracker, *, max_tokens: int) -> None:
        self.teacher, self.journal, self.purse = teacher, journal, purse
        self.max_tokens = max_tokens
        self.out_of_money = False
        self.short_usd = 0.0
        """What the request that the cap refused may have cost at worst."""
        self.bad: dict[LabelRequest, BadAnswer] = {}
        self.n_new = 0
        self._bad_in_a_row = 0
        self._fatal: SmallfirstError | None = None

    async def ask(self, errands: Mapping[LabelRequest, str], progress: ProgressCallback) -> None:
        """Do the errands that the journal has no answer to, until all are done or the cap is reached.

        An errand without a usable answer is kept in `bad`. Raises any other error of the model once what is under way
        has ended; every answer is in the journal by then.
        """
        missing = [(e, text) for e, text in errands.items() if e not in self.journal.answers and e not in self.bad]
        n_there = len(errands) - len(missing) - self.n_new

        def tell() -> None:
            progress(n_there + self.n_new, len(errands), f"${self.purse.spent_usd:.4f}")

        todo = iter(missing)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.teacher.at_once):
                group.create_task(self._work(todo, tell))
        if self._fatal is not None:
            raise self._fatal

    async def _work(self, todo: Iterator[tuple[LabelRequest, str]], tell: Callable[[], None]) -> None:
        for errand, text in todo:
            worst_usd = self.teacher.worst_usd(text)
            held = await self.purse.take(worst_usd)
            if held is None:
                self.out_of_money, self.short_usd = True, worst_usd
                return
            if self._is_over:  # while this one waited
                await self.purse.settle(held, 0.0)
                return
            self.journal.asked(errand, held)
            await self.purse.settle(held, await self._one(errand, text, held))
            tell()
            if self._is_over:
                return

    @property
    def _is_over(self) -> bool:
        return self.out_of_money or self._fatal is not None

    async def _one(self, errand: LabelRequest, text: str, held_usd: float) -> float:
        """What one request has cost, at worst where that is not known."""
        request = Request.ask(text, max_tokens=self.max_tokens)
        if errand.draw:
            request = request.model_copy(update={"temperature": SECOND_ANSWER_TEMPERATURE, "seed": errand.draw})
        try:
            completion = await self.teacher.model.complete(request)
        except BadAnswer as error:
            self.bad[errand] = error
            self._bad_in_a_row += 1
            if self._bad_in_a_row >= MAX_BAD_IN_A_ROW:
                self._fatal = self._fatal or error
            return held_usd
        except (RateLimited, Unauthorised) as error:
            self.journal.refused(errand)
            self._fatal = self._fatal or error
            return 0.0
        except SmallfirstError as error:
            self._fatal = self._fatal or error
            return held_usd
        self.journal.said(_said(errand, text, completion))
        self.n_new, self._bad_in_a_row = self.n_new + 1, 0
        return completion.cost_usd


def _said(errand: LabelRequest, text: str, completion: Completion) -> LabelResponse:
    return LabelResponse(
        key=errand.key,
        draw=errand.draw,
        text=text,
        answer=completion.text,
        confidence=completion.confidence,
        cost_usd=completion.cost_usd,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        finish_reason=completion.finish_reason,
        answered_by=completion.answered_by,
        on=datetime.now(UTC).date().isoformat(),
    )
