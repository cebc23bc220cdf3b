"""A Router after go-live: its promise is audited, its traffic watched, and the large model answers when it breaks.

A share of the answers that the certificate keeps is chosen by chance, before anybody knows how they turn out, and held
against the large model's answer or a person's. Verdicts feed a bound that is valid at any time
(`smallfirst.routing.monitoring.monitor`). Its state is in the ledger, so a restart goes on where it stopped; only the
drift tests begin anew. An audit costs one more answer of the large model, asked after the client has its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Literal, NamedTuple, cast

from smallfirst.errors import ModelError
from smallfirst.models.protocol import Capability, Chunk, Completion, Request
from smallfirst.routing.monitoring.monitor import Monitor, State, StateChange
from smallfirst.routing.router import Router
from smallfirst.routing.types import Decision
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, StateRow

_log = logging.getLogger("smallfirst.serving")
_OUTSIDE = "domain"
MAX_CONCURRENT_AUDITS = 4
"""Audits that may be under way side by side; further ones wait, so that audits never crowd out answers."""


class AuditSettings(NamedTuple):
    """How answers of one task are judged."""

    judge: Literal["large", "person"]
    """Whose answer a kept one is held against."""
    holds: Callable[[str, str], bool]
    """True if the first answer (the draft) says what the second one (the judge's) says."""
    store_bodies: bool = False
    """True keeps both answers in the ledger."""


class AuditedRouter:
    """A Router under watch, itself a Model."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})
    """What it can do beyond answering."""

    def __init__(
        self,
        router: Router,
        monitor: Callable[[], Monitor],
        *,
        ledger: Ledger,
        auditing: AuditSettings,
        draw: random.Random | None = None,
    ) -> None:
        """`monitor` makes a new one, as at go-live: what happened since is fed to it from the ledger."""
        self.router, self.ledger, self.auditing = router, ledger, auditing
        self._new_monitor, self.monitor = monitor, monitor()
        self.certificate = router.certificate.fingerprint()
        self._draw = draw or random.SystemRandom()
        self._waiting: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_CONCURRENT_AUDITS)
        self._drawn_at: dict[str, int] = {}
        self._feed_audits()
        self._go_on()

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self.router.name

    @property
    def paused(self) -> str:
        """Why the large model answers everything at the moment; empty while the small one may."""
        if self.monitor.state == "shadow":
            return "the small model runs in shadow: its certificate was not issued"
        return "the promise was found broken on live answers" if self.monitor.state == "fallback" else ""

    async def complete(self, request: Request) -> Completion:
        """The Router's answer; the large model's while the promise is not in force."""
        decision = await self._decide(request)
        return self._chosen(await self.router.finish(decision, request))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The same piece by piece."""
        decision = await self._decide(request)
        async for chunk in self.router.finish_stream(decision, request):
            if chunk.completion is not None:
                chunk = chunk.model_copy(update={"completion": self._chosen(chunk.completion)})
            yield chunk

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Nothing; an answer that chance has chosen is audited in the background."""
        route = completion.route
        if route is None or route.task != self.name or not route.audited:
            return
        self._drawn_at[id] = self.monitor.requests
        if self.auditing.judge == "large" or self.paused:
            task = asyncio.get_running_loop().create_task(self._audit(id, request, completion))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def feedback(self, said: FeedbackRow) -> None:
        """Nothing; a verdict on an audited answer counts as that audit's, any other one is kept without effect."""
        await self.ledger.append_async(said)
        row = await asyncio.to_thread(self.ledger.get, said.id)
        if row is None or not row.audited or row.audit_share is None or not row.certified:
            return
        if row.at < self._since:
            return  # it was given under another certificate, and says nothing about this one
        own = {stage.model.name for stage in (*self.router.stages, *self.router.options.policy_stages)}
        if row.answered_by is not None and row.answered_by not in own:
            return  # another version gave it
        earlier = await asyncio.to_thread(self.ledger.entries, AuditRow, id=said.id)
        verdict = AuditRow(
            id=said.id,
            at=said.at,
            task=self.name,
            certificate=self.certificate,
            propensity=row.audit_share,
            wrong=said.verdict == "wrong",
            judged_by="person",
            other=said.answer if self.auditing.store_bodies else None,
        )
        if not earlier:
            await self._take(verdict)
        elif earlier[-1].wrong != verdict.wrong:
            await self.ledger.append_async(verdict)
            before, self.monitor = self.monitor.state, self._new_monitor()
            self._feed_audits()
            if self.monitor.state != before:
                why = f"a person corrected the verdict on {said.id}"
                await self._log_state(before, self.monitor.state, why)

    async def aclose(self) -> None:
        """Let audits under way end, then close the models."""
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=30)
        await self.router.aclose()

    async def _decide(self, request: Request) -> Decision:
        decision = await self.router.decide(request, paused=self.paused)
        await self._seen(decision)
        return decision

    def _chosen(self, completion: Completion) -> Completion:
        """The completion with the draw of its audit."""
        route = completion.route
        beside = self.paused and route is not None and route.why == self.paused
        if route is None or not (route.certified or beside):
            return completion
        share = self.monitor.audit_share
        drawn = {"audit_share": share, "audited": self._draw.random() < share}
        return completion.model_copy(update={"route": route.model_copy(update=drawn)})

    async def _audit(self, id: str, request: Request, completion: Completion) -> None:
        """Hold a kept answer against the large model's, or in fallback and shadow a draft against the answer given."""
        route = completion.route
        assert route is not None
        assert route.audit_share is not None
        async with self._room:
            try:
                if route.certified:
                    assert self.router.large is not None
                    other = await self.router.large.complete(request)
                    draft, judged, cost_usd = completion.text, other.text, other.cost_usd
                else:
                    decision = await self._beside(id, request)
                    if decision.model is not None or decision.draft is None or not decision.route.certified:
                        return  # the certificate would not keep it: no promise was made about it
                    draft, judged, cost_usd = decision.draft.text, completion.text, decision.cost_usd
            except ModelError as error:
                _log.warning("%s: not audited, %s", id, error.args[0])
                return
        if await asyncio.to_thread(self.ledger.entries, AuditRow, id=id):
            return  # a person was quicker, and counts more
        wrong = not self.auditing.holds(draft, judged)
        await self._take(
            AuditRow(
                id=id,
                at=datetime.now(UTC),
                task=self.name,
                certificate=self.certificate,
                propensity=route.audit_share,
                wrong=wrong,
                judged_by="large",
                cost_usd=cost_usd,
                draft=draft if self.auditing.store_bodies else None,
                other=judged if self.auditing.store_bodies else None,
            )
        )

    async def _beside(self, id: str, request: Request) -> Decision:
        """What the Router would have decided, had it been asked: the small model at work beside the large one."""
        decision = await self.router.decide(request)
        await self._seen(decision)
        self._drawn_at[id] = self.monitor.requests
        return decision

    async def _seen(self, decision: Decision) -> None:
        """Tell the monitor of a draft."""
        if decision.draft is not None:
            doubt = next((s.score for s in decision.route.trail if s.stage == _OUTSIDE), None)
            await self._log(self.monitor.observe(decision.route.confidence, doubt, decision.draft.text))

    async def _take(self, audit: AuditRow) -> None:
        await self.ledger.append_async(audit)
        await self._log(self.monitor.record_audit(audit.wrong, drawn_at=self._drawn_at.pop(audit.id, None)))

    async def _log(self, changes: tuple[StateChange, ...]) -> None:
        for change in changes:
            await self._log_state(change.before, change.after, change.why)

    async def _log_state(self, before: str, after: str, why: str) -> None:
        _log.warning("%s: %s -> %s: %s", self.name, before or "start", after, why)
        row = StateRow(
            at=datetime.now(UTC), task=self.name, before=before, after=after, why=why, certificate=self.certificate
        )
        await self.ledger.append_async(row)

    def _feed_audits(self) -> None:
        """Tell the monitor what the ledger knows of this certificate: each audit once, with its last verdict."""
        audits = [a for a in self.ledger.entries(AuditRow, task=self.name) if a.certificate == self.certificate]
        last = {audit.id: audit.wrong for audit in audits}
        for wrong in last.values():
            self.monitor.record_audit(wrong)

    def _go_on(self) -> None:
        """Take up the state that was last written down for this certificate, or write down the first one."""
        states = [s for s in self.ledger.entries(StateRow, task=self.name) if s.certificate == self.certificate]
        self._since = states[0].at if states else datetime.now(UTC)
        if states:
            self.monitor.resume(cast(State, states[-1].after))
            return
        first = StateRow(
            at=self._since,
            task=self.name,
            before="",
            after=self.monitor.state,
            why=self.paused or self.router.certificate.why,
            certificate=self.certificate,
        )
        self.ledger.append(first)
