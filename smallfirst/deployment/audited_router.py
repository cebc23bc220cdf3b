"""A Router after go-live: its guarantee is audited, its traffic monitored, and the large model answers on an alarm.

A share of the answers that the certificate accepts is selected by chance and compared with the large model's answer or
a person's. The monitor's state is in the ledger, which all processes follow and a restart reads.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any, get_args

from smallfirst.deployment.auditing import AuditSettings, note_difference, outcome_of
from smallfirst.deployment.followed_monitor import FOLLOW_S, FollowedMonitor
from smallfirst.deployment.second_look import SecondLooks
from smallfirst.errors import ModelError
from smallfirst.gate.outcome import Outcome, Standing, with_broken
from smallfirst.models.protocol import Chunk, Completion, Request, Route
from smallfirst.models.usage import ReportUnfinished, collect_attempts
from smallfirst.models.wrappers import DelegatingModel
from smallfirst.pricing.charge import charges_json, total_usd, with_purpose
from smallfirst.routing.monitoring.drift import Statistic
from smallfirst.routing.monitoring.monitor import Monitor
from smallfirst.routing.router import OUT_OF_SCOPE, Decision, Router, is_covered, took_cascade
from smallfirst.serving.ledger.ledger import AlreadyRecorded, Ledger, LedgerAway, LedgerUnavailable
from smallfirst.serving.ledger.rows import (
    AuditRow,
    DraftRow,
    FeedbackRow,
    attempt_rows,
)
from smallfirst.serving.openai.errors import ApiError

_log = logging.getLogger("smallfirst.serving")
_OOD_STAGE = "domain"
AskLarge = Callable[[], Awaitable[Completion]]
"""Ask the large model again what it was, or would have been, asked."""
SHADOW_WHY = "the small model runs in shadow: nothing of it may be answered"
MAX_CONCURRENT_AUDITS = 4
"""Audits at the same time; further ones wait, so that audits never crowd out answers."""
MAX_PENDING_AUDITS = 10_000
"""Drafts that wait for a person of which the process remembers the text; with stored bodies the ledger has all."""


class AuditedRouter(DelegatingModel):
    """A Router with audits and monitoring, itself a Model."""

    def __init__(
        self,
        router: Router,
        monitor: Monitor,
        *,
        ledger: Ledger,
        auditing: AuditSettings,
        outcome: Outcome | None = None,
        second_look: SecondLooks | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`monitor` is in its state at go-live; audits recorded since then are fed to it.

        `outcome` is that of the run whose version answers; left out, all that is known of it is the certificate.
        `second_look` collects what is drafted in shadow.
        """
        super().__init__(router)
        self.outcome = outcome or outcome_of(router)
        self.router, self.ledger, self.auditing, self.second_look = router, ledger, auditing, second_look
        self.certificate = router.certificate.fingerprint()
        self._rng = rng or random.SystemRandom()
        self._tasks: set[asyncio.Task[None]] = set()
        self._audit_slots = asyncio.Semaphore(MAX_CONCURRENT_AUDITS)
        self._drafts: dict[str, DraftRow] = {}
        """By response id the drafts that a person is to judge beside the answers that the large model gave."""
        self._followed = FollowedMonitor(
            monitor,
            ledger,
            self.name,
            self.certificate,
            why=self.outcome.in_short,
            shadow_why=SHADOW_WHY,
        )
        self._since, self._shared_at_s = self._followed.since, float("-inf")

    @property
    def monitor(self) -> Monitor:
        """The monitor as this process knows it."""
        return self._followed.monitor

    @property
    def standing(self) -> Standing:
        """What is in force now: the outcome, narrowed by the monitor's state."""
        return self.outcome.standing(self.monitor.state, broken=[one.words for one in self.monitor.broken])

    @property
    def cause(self) -> str:
        """What led to the present state."""
        return self._followed.cause

    async def follow(self) -> None:
        """Take over what other processes have written, unless that was done a moment ago. Raise LedgerAway."""
        try:
            await self._followed.follow(older_than_s=FOLLOW_S)
        except LedgerUnavailable as error:
            raise LedgerAway(error.args[0], hint=error.hint) from None
        if (now := time.monotonic()) - self._shared_at_s > FOLLOW_S:
            self._shared_at_s = now
            await self._share()

    @property
    def paused(self) -> str:
        """Why the large model answers everything at the moment; empty while the small one may answer."""
        if self.monitor.state == "shadow":
            return SHADOW_WHY
        if self.monitor.state != "fallback":
            return ""
        if self.cause in get_args(Statistic):
            return "live traffic has drifted"
        by_gate = any(watch.exceeded and watch.quantity.by_gate for watch in self.monitor.watches)
        return f"the {'gate' if by_gate else 'guarantee'} was found broken on live answers"

    def note_version(self, before: str, why: str) -> None:
        """Write to the ledger that another version answers, or why none does. Raise LedgerUnavailable."""
        self.ledger.append(self._followed.row(before, self.monitor.state, why, "version"))

    def gave(self, completion: Completion) -> bool:
        """Return True if one of the Router's own models wrote the answer: their names contain the version."""
        return completion.answered_by in self._own_models

    async def complete(self, request: Request) -> Completion:
        """Return the Router's answer, or the large model's while the guarantee is not in force."""
        decision = await self.decide(request)
        return await self._note_answer(await self.router.finish(decision, request), decision)

    async def settle(self, decision: Decision, answer: Completion) -> Completion:
        """Return the answer that was given to a decision, by its draft or by a model that was asked elsewhere."""
        routed = answer if decision.model is None else self.router.routed(decision, answer)
        return await self._note_answer(routed, decision)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        decision = await self.decide(request)
        async with aclosing(self.router.finish_stream(decision, request)) as chunks:
            async for chunk in chunks:
                if chunk.completion is not None:
                    noted = await self._note_answer(chunk.completion, decision)
                    chunk = chunk.model_copy(update={"completion": noted})
                yield chunk

    def answered(
        self,
        id: str,
        request: Request,
        completion: Completion,
        *,
        ask_large: AskLarge | None = None,
        in_shadow: bool | None = None,
    ) -> None:
        """Audit the answer if chance has drawn it; `ask_large` asks in the place of the Router's large model.

        `in_shadow`: it is the large model's whatever the draft, and can be read; None: if the monitor is in shadow.
        """
        route = completion.route
        if route is None or route.task != self.name or not route.audited:
            return
        if self.auditing.judge == "large" or not self._is_small(route):
            counts = self.monitor.state == "shadow" if in_shadow is None else in_shadow
            task = asyncio.get_running_loop().create_task(
                self._audit(id, request, completion, datetime.now(UTC), ask_large, in_shadow=counts)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def feedback(self, feedback: FeedbackRow) -> FeedbackRow:
        """Record feedback and return it with whether it is an audit's verdict: a judge's first one, where chance drew.

        Raise ApiError if it judges a draft and does not tell what is right.
        """
        if feedback.judge and (verdict := await asyncio.to_thread(self._verdict, feedback)) is not None:
            feedback = feedback.model_copy(update={"counted": await self._take_verdict(verdict)})
        await self.ledger.append_async(feedback)
        return feedback

    def _verdict(self, feedback: FeedbackRow) -> AuditRow | None:
        """Return what a judge's feedback says about an audit; None if chance drew none, or it has its verdict."""
        row = self.ledger.get(feedback.id)
        if row is None or not row.audited or row.audit_share is None or self.ledger.count(AuditRow, id=row.id):
            return None
        if row.at < self._since:
            return None  # an answer under another certificate tells nothing about this one
        wrong, answered_at = feedback.verdict == "wrong", row.at
        certified = row.certified or is_covered(row.steps)
        if not row.certified and row.answered_by not in self._own_models:
            if (beside := self._drafts.get(row.id) or self._stored_draft(row.id)) is None:
                return None
            wrong = self._draft_is_wrong(feedback, beside.draft or "", beside.other or "")
            answered_at, certified = beside.at, beside.certified
        elif row.answered_by is not None and row.answered_by not in self._own_models:
            return None  # another version gave it
        other = feedback.answer if self.auditing.store_bodies else None
        values = {"at": feedback.at, "wrong": wrong, "judged_by": "person", "answered_at": answered_at, "other": other}
        values["certified"] = certified
        return self._audit_row(row.id, row.audit_share, row.audit_weight, values)

    def _audit_row(self, id: str, share: float, weight: float, values: dict[str, Any]) -> AuditRow:
        drawn = {"id": id, "propensity": share, "weight": weight}
        return AuditRow.model_validate({"task": self.name, "certificate": self.certificate, **drawn, **values})

    def _stored_draft(self, id: str) -> DraftRow | None:
        """Return the draft that another process made, or this one before a restart; None where no text is stored."""
        for row in self.ledger.entries(DraftRow, id=id):
            if row.certificate == self.certificate and row.draft is not None and row.other is not None:
                return row
        return None

    def _draft_is_wrong(self, feedback: FeedbackRow, draft: str, shown: str) -> bool:
        """Tell by the right answer whether the draft beside the large model's answer `shown` is wrong."""
        right = feedback.answer or (shown if feedback.verdict == "right" else None)
        if right is not None:
            return not self.auditing.agrees(draft, right)
        if self.auditing.agrees(draft, shown):
            return True
        message = "The small model's draft is judged by the right answer, which differs from this one: name it."
        raise ApiError(400, message, param="answer", code="answer_required")

    async def aclose(self) -> None:
        """Wait for running audits, then close the models."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=30)
        with suppress(LedgerAway):
            await self._share()
        await self.router.aclose()

    def _is_small(self, route: Route) -> bool:
        """Return True if the cascade's own model gave the answer as it was evaluated: no policy and no setting did."""
        return took_cascade(route) and any(stage.name == route.stage for stage in self.router.stages)

    def _is_audited(self, route: Route) -> bool:
        """Return True if audits watch such a small answer: the certificate covers it, or the gate was about all."""
        return self._is_small(route) and (self.monitor.audits_all or is_covered(route.trail))

    @property
    def _own_models(self) -> set[str]:
        return {stage.model.name for stage in (*self.router.stages, *self.router.options.policy_stages)}

    async def decide(self, request: Request) -> Decision:
        """Decide who answers a request, and count it as traffic; `settle` takes the answer. Raise LedgerAway."""
        await self.follow()
        decision = await self.router.decide(request, paused=self.paused)
        await self._observe(decision)
        return decision

    async def _share(self) -> None:
        """Tell other processes what was counted here, and learn what they counted. Raise LedgerAway."""
        await self.monitor.sums.share(self.ledger.shared, f"sums/{self.name}/{self.certificate}")
        if (tracker := self.router.budget_tracker) is not None:
            await tracker.share(self.ledger.shared, self.name)

    async def _note_answer(self, completion: Completion, decision: Decision) -> Completion:
        """Test the limits that requests test, and return the answer as it is given, drawn for an audit or not."""
        completion = await note_difference(completion, decision, self.auditing.agrees)
        route = completion.route
        if route is not None and (took_cascade(route) or any(step.stage == _OOD_STAGE for step in route.trail)):
            with ReportUnfinished(lambda _: completion):
                await self._followed.found(self.monitor.record_answer(completion))
        if route is not None and route.certified and self.monitor.broken:
            in_words = with_broken(route.guarantee, [quantity.words for quantity in self.monitor.broken])
            completion = completion.model_copy(update={"route": route.model_copy(update={"guarantee": in_words})})
        return self._select_for_audit(completion)

    def _select_for_audit(self, completion: Completion) -> Completion:
        route = completion.route
        drafted_beside = self.paused and route is not None and route.why == self.paused
        if route is None or not (self._is_audited(route) or drafted_beside):
            return completion
        last = route.certified and route.stage == self.router.stages[-1].name
        confidence = route.confidence if last else None
        share, weight = self.monitor.plan_audit(confidence)
        drawn = {"audit_share": share, "audit_weight": weight, "audited": self._rng.random() < share}
        return completion.model_copy(update={"route": route.model_copy(update=drawn)})

    async def _ask_large(self, id: str, request: Request, ask: AskLarge | None) -> Completion:
        attempts = collect_attempts()
        try:
            if ask is not None:
                return await ask()
            assert self.router.large is not None
            return await self.router.large.complete(request.as_evaluated)
        finally:
            if attempts:
                await self.ledger.append_async(*attempt_rows(id, attempts, purpose="audit"))

    async def _audit(
        self,
        id: str,
        request: Request,
        completion: Completion,
        answered_at: datetime,
        ask: AskLarge | None,
        *,
        in_shadow: bool = False,
    ) -> None:
        """Compare an accepted answer with the large model's, or in fallback and shadow a draft with the answer.

        Where a person judges, only make the draft: it waits for the person.
        """
        route = completion.route
        assert route is not None
        assert route.audit_share is not None
        async with self._audit_slots:
            try:
                certified = is_covered(route.trail)
                if self._is_small(route):
                    other = await self._ask_large(id, request, ask)
                    draft, judged, charges = completion.text, other.text, other.charges
                elif request.temperature > 0:
                    return  # the answer was drawn by chance, and no other one is asked for: it judges nothing
                else:
                    decision = await self.router.decide(request.as_evaluated)
                    await self._observe(decision)
                    answered_at = datetime.now(UTC)
                    if in_shadow and self.second_look is not None:
                        await self.second_look.compared(id, request, decision, completion, state=self.monitor.state)
                    if decision.model is not None or decision.draft is None or not self._is_audited(decision.route):
                        return  # it would not have been answered, or nothing is watched about it
                    certified = is_covered(decision.route.trail)
                    draft, judged, charges = decision.draft.text, completion.text, decision.charges
                    if self.auditing.judge == "person":
                        await self._ask_person(id, draft, judged, answered_at, certified=certified)
                        return
            except ModelError as error:
                _log.warning("%s: not audited, %s", id, error.args[0])
                return
        agreed = await asyncio.to_thread(self.auditing.agrees, draft, judged)
        values = {"at": datetime.now(UTC), "wrong": not agreed, "judged_by": "large", "certified": certified}
        values["answered_at"] = answered_at
        values |= {"cost_usd": total_usd(charges), "charges": charges_json(with_purpose(charges, "audit"))}
        values |= {"draft": draft, "other": judged} if self.auditing.store_bodies else {}
        # Unless a person was quicker:
        await self._take_verdict(self._audit_row(id, route.audit_share, route.audit_weight, values))

    async def _observe(self, decision: Decision) -> None:
        if decision.draft is not None and decision.route.stage != OUT_OF_SCOPE and not decision.changed:
            ood_score = next((s.score for s in decision.route.trail if s.stage == _OOD_STAGE), None)
            await self._followed.found(self.monitor.observe(decision.route.confidence, ood_score, decision.draft.text))

    async def _ask_person(self, id: str, draft: str, shown: str, at: datetime, *, certified: bool) -> None:
        named = {"task": self.name, "certificate": self.certificate, "certified": certified}
        row = DraftRow(id=id, at=at, draft=draft, other=shown, **named)
        self._drafts[id] = row
        if len(self._drafts) > MAX_PENDING_AUDITS:
            del self._drafts[next(iter(self._drafts))]
        without = {} if self.auditing.store_bodies else {"draft": None, "other": None}
        await self.ledger.append_async(row.model_copy(update=without))

    async def _take_verdict(self, audit: AuditRow) -> bool:
        """Count a verdict of an audit; return False if there is one already, from whichever process: it is final."""
        try:
            await self.ledger.append_async(audit)
        except AlreadyRecorded:
            return False
        await self._followed.follow()
        return True
