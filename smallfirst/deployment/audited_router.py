"""A Router after go-live: its guarantee is audited, its traffic monitored, and the large model answers on an alarm.

A share of the answers that the certificate accepts is selected by chance and compared with the large model's answer or
a person's. The monitor's state is in the ledger, so a restart continues where the process ended.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Literal, NamedTuple, cast, get_args

from smallfirst.errors import ModelError
from smallfirst.models.protocol import Chunk, Completion, Request
from smallfirst.models.usage import ReportUnfinished
from smallfirst.models.wrappers import DelegatingModel
from smallfirst.routing.monitoring.drift import Statistic
from smallfirst.routing.monitoring.monitor import Monitor, State, StateChange
from smallfirst.routing.router import Router, took_cascade
from smallfirst.routing.types import Decision
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, StateRow

_log = logging.getLogger("smallfirst.serving")
_OOD_STAGE = "domain"
MAX_CONCURRENT_AUDITS = 4
"""Audits at the same time; further ones wait, so that audits never crowd out answers."""
MAX_PENDING_AUDITS = 10_000
"""Selected answers of which the process remembers when they were given, until their verdict comes."""


class AuditSettings(NamedTuple):
    """How answers of one task are judged."""

    judge: Literal["large", "person"]
    agrees: Callable[[str, str], bool]
    """Return True if the first answer (the draft) agrees with the second one (the judge's)."""
    store_bodies: bool = False


class AuditedRouter(DelegatingModel):
    """A Router with audits and monitoring, itself a Model."""

    def __init__(
        self,
        router: Router,
        monitor: Callable[[], Monitor],
        *,
        ledger: Ledger,
        auditing: AuditSettings,
        rng: random.Random | None = None,
    ) -> None:
        """`monitor` creates a monitor in its state at go-live; audits recorded since then are fed to it."""
        super().__init__(router)
        self.router, self.ledger, self.auditing = router, ledger, auditing
        self._new_monitor, self.monitor = monitor, monitor()
        self.certificate = router.certificate.fingerprint()
        self._rng = rng or random.SystemRandom()
        self._tasks: set[asyncio.Task[None]] = set()
        self._audit_slots = asyncio.Semaphore(MAX_CONCURRENT_AUDITS)
        self._verdict_lock = asyncio.Lock()
        self._drawn_at: dict[str, int] = {}
        self._feed_audits()
        self._since, self.cause = self._resume()
        """When this certificate went live, and what led to the present state."""

    @property
    def paused(self) -> str:
        """Why the large model answers everything at the moment; empty while the small one may answer."""
        if self.monitor.state == "shadow":
            return "the small model runs in shadow: its certificate was not issued"
        if self.monitor.state != "fallback":
            return ""
        return "live traffic has drifted" if self._drifted else "the guarantee was found broken on live answers"

    def gave(self, completion: Completion) -> bool:
        """Return True if one of the Router's own models wrote the answer: their names contain the version."""
        return completion.answered_by in self._own_models

    async def complete(self, request: Request) -> Completion:
        """Return the Router's answer, or the large model's while the guarantee is not in force."""
        decision = await self._decide(request)
        return await self._note_answer(await self.router.finish(decision, request))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        decision = await self._decide(request)
        async with aclosing(self.router.finish_stream(decision, request)) as chunks:
            async for chunk in chunks:
                if chunk.completion is not None:
                    chunk = chunk.model_copy(update={"completion": await self._note_answer(chunk.completion)})
                yield chunk

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        route = completion.route
        if route is None or route.task != self.name or not route.audited:
            return
        self._note_drawn(id)
        if self.auditing.judge == "large" or self.paused:
            task = asyncio.get_running_loop().create_task(self._audit(id, request, completion))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def feedback(self, feedback: FeedbackRow) -> None:
        """Record a verdict. On an audited answer it counts as that audit's; on any other it has no effect."""
        await self.ledger.append_async(feedback)
        row = await asyncio.to_thread(self.ledger.get, feedback.id)
        if row is None or not row.audited or row.audit_share is None or not row.certified:
            return
        if row.at < self._since:
            return  # it was given under another certificate and tells nothing about this one
        if row.answered_by is not None and row.answered_by not in self._own_models:
            return  # another version gave it
        verdict = AuditRow(
            id=feedback.id,
            at=feedback.at,
            task=self.name,
            certificate=self.certificate,
            propensity=row.audit_share,
            wrong=feedback.verdict == "wrong",
            judged_by="person",
            other=feedback.answer if self.auditing.store_bodies else None,
        )
        async with self._verdict_lock:
            earlier = await asyncio.to_thread(self.ledger.entries, AuditRow, id=feedback.id)
            if not earlier:
                await self._take_verdict(verdict)
            elif earlier[-1].wrong != verdict.wrong:
                await self._correct_verdict(verdict)

    async def aclose(self) -> None:
        """Wait for running audits, then close the models."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=30)
        await self.router.aclose()

    @property
    def _own_models(self) -> set[str]:
        return {stage.model.name for stage in (*self.router.stages, *self.router.options.policy_stages)}

    @property
    def _drifted(self) -> bool:
        return self.cause in get_args(Statistic)

    async def _decide(self, request: Request) -> Decision:
        decision = await self.router.decide(request, paused=self.paused)
        await self._observe(decision)
        return decision

    async def _note_answer(self, completion: Completion) -> Completion:
        """Test the limits that requests test, and return the answer as it is given, drawn for an audit or not."""
        route = completion.route
        if route is not None and took_cascade(route):
            with ReportUnfinished(lambda _: completion):
                await self._record_changes(self.monitor.record_answer(completion))
        if route is not None and route.certified and self.monitor.broken:
            broken = ", ".join(quantity.words for quantity in self.monitor.broken)
            in_words = f"{route.guarantee}; not in force, found broken on live requests: {broken}"
            completion = completion.model_copy(update={"route": route.model_copy(update={"guarantee": in_words})})
        return self._select_for_audit(completion)

    def _select_for_audit(self, completion: Completion) -> Completion:
        route = completion.route
        drafted_beside = self.paused and route is not None and route.why == self.paused
        if route is None or not (route.certified or drafted_beside):
            return completion
        share = self.monitor.audit_share
        drawn = {"audit_share": share, "audited": self._rng.random() < share}
        return completion.model_copy(update={"route": route.model_copy(update=drawn)})

    async def _audit(self, id: str, request: Request, completion: Completion) -> None:
        """Compare an accepted answer with the large model's, or in fallback and shadow a draft with the answer."""
        route = completion.route
        assert route is not None
        assert route.audit_share is not None
        async with self._audit_slots:
            try:
                if route.certified:
                    assert self.router.large is not None
                    other = await self.router.large.complete(request)
                    draft, judged, cost_usd = completion.text, other.text, other.cost_usd
                else:
                    decision = await self.router.decide(request)
                    await self._observe(decision)
                    self._note_drawn(id)
                    if decision.model is not None or decision.draft is None or not decision.route.certified:
                        return  # the certificate would not accept it: nothing was guaranteed about it
                    draft, judged, cost_usd = decision.draft.text, completion.text, decision.cost_usd
            except ModelError as error:
                _log.warning("%s: not audited, %s", id, error.args[0])
                return
        verdict = AuditRow(
            id=id,
            at=datetime.now(UTC),
            task=self.name,
            certificate=self.certificate,
            propensity=route.audit_share,
            wrong=not self.auditing.agrees(draft, judged),
            judged_by="large",
            cost_usd=cost_usd,
            draft=draft if self.auditing.store_bodies else None,
            other=judged if self.auditing.store_bodies else None,
        )
        async with self._verdict_lock:
            if not await asyncio.to_thread(self.ledger.entries, AuditRow, id=id):  # else a person was quicker
                await self._take_verdict(verdict)

    async def _observe(self, decision: Decision) -> None:
        if decision.draft is not None:
            ood_score = next((s.score for s in decision.route.trail if s.stage == _OOD_STAGE), None)
            changes = self.monitor.observe(decision.route.confidence, ood_score, decision.draft.text)
            await self._record_changes(changes)

    async def _take_verdict(self, audit: AuditRow) -> None:
        await self.ledger.append_async(audit)
        await self._record_changes(self.monitor.record_audit(audit.wrong, drawn_at=self._drawn_at.pop(audit.id, None)))

    async def _correct_verdict(self, verdict: AuditRow) -> None:
        """Rebuild the monitor with the corrected verdict; an alarm about drift does not rest on verdicts and stays."""
        await self.ledger.append_async(verdict)
        before, self.monitor = self.monitor.state, self._new_monitor()
        self._feed_audits()
        if self._drifted and before in ("drift", "fallback") and self.monitor.state == "live":
            self.monitor.resume(before)
        if self.monitor.state != before:
            await self._record_state(before, f"a person corrected the verdict on {verdict.id}", cause="verdict")

    async def _record_changes(self, changes: tuple[StateChange, ...]) -> None:
        for change in changes:
            await self._record_state(change.before, change.why, cause=change.cause, after=change.after)

    async def _record_state(self, before: str, why: str, *, cause: str, after: str = "") -> None:
        after = after or self.monitor.state
        if after != before:
            self.cause = cause
        _log.warning("%s: %s -> %s: %s", self.name, before, after, why)
        await self.ledger.append_async(self._state_row(before, after, why, cause))

    def _state_row(self, before: str, after: str, why: str, cause: str) -> StateRow:
        return StateRow(
            at=datetime.now(UTC),
            task=self.name,
            before=before,
            after=after,
            why=why,
            cause=cause,
            certificate=self.certificate,
        )

    def _note_drawn(self, id: str) -> None:
        self._drawn_at[id] = self.monitor.requests
        if len(self._drawn_at) > MAX_PENDING_AUDITS:
            del self._drawn_at[next(iter(self._drawn_at))]

    def _feed_audits(self) -> None:
        """Feed the monitor each audit of this certificate once, with its last verdict."""
        audits = [a for a in self.ledger.entries(AuditRow, task=self.name) if a.certificate == self.certificate]
        last = {audit.id: audit.wrong for audit in audits}
        for wrong in last.values():
            self.monitor.record_audit(wrong)

    def _resume(self) -> tuple[datetime, str]:
        """Resume the state last recorded for this certificate, or record the first one; return go-live and cause."""
        states = [s for s in self.ledger.entries(StateRow, task=self.name) if s.certificate == self.certificate]
        if states:
            self.monitor.resume(cast(State, states[-1].after))
            self.monitor.resume_broken({state.cause for state in states})
            causes = [state.cause for state in states if state.before != state.after]
            return states[0].at, causes[-1]
        why = self.router.certificate.why
        if self.monitor.state == "shadow":
            why = "the small model runs in shadow: its certificate was not issued"
        first = self._state_row("", self.monitor.state, why, "")
        self.ledger.append(first)
        return first.at, ""
