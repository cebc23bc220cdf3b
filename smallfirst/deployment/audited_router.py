"""A Router after go-live: its guarantee is audited, and the large model answers while audits find it broken.

A share of the answers that the certificate accepts is selected by chance and compared with the large model's answer or
a person's. The state follows from the audits in the ledger alone, so all processes over one ledger are in the same, and
a restart reads the same.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from smallfirst.base.errors import ModelError
from smallfirst.deployment.second_look import SecondLooks
from smallfirst.ledger.ledger import AlreadyRecorded, Ledger, LedgerAway, LedgerUnavailable
from smallfirst.ledger.rows import AuditRow, FeedbackRow, StateRow, attempt_rows
from smallfirst.measuring.outcome import Outcome, Standing
from smallfirst.models.pricing import charges_json, total_usd, with_purpose
from smallfirst.models.protocol import Bill, Chunk, Completion, DelegatingModel, Request, Route
from smallfirst.models.stages import Answerer, answerer
from smallfirst.routing.monitor import Judge, Monitor
from smallfirst.routing.router import Decision, Router, is_covered, took_cascade
from smallfirst.tasks.task import Task

_log = logging.getLogger("smallfirst.serving")
AskLarge = Callable[[], Awaitable[Completion]]
"""Ask the large model again what it was, or would have been, asked."""
SHADOW_WHY = "the small model runs in shadow: nothing of it may be answered"
FOLLOW_S = 1.0
"""Seconds after which a decision is not made before the ledger was read again."""
MAX_CONCURRENT_AUDITS = 4
"""Audits at the same time; further ones wait, so that audits never crowd out answers."""
MAX_WAITING_AUDITS = 1_000
"""Of those that were drawn while so many wait the verdict is missing, which is counted and shown."""


class AuditSettings(NamedTuple):
    """How answers of one task are judged."""

    judge: Judge
    agrees: Callable[[str, str], bool]
    """Return True if the first answer (the draft) agrees with the second one (the judge's).

    It runs in a thread: the score of a long extraction takes its time.
    """
    store_bodies: bool = False
    task: Task | None = None
    """What answers may be, for those who mark them."""
    agreement: bool = False
    """True if right is what the large model answers, whatever that is; else an answer that is none of the task's judges
    nothing."""


class Audits:
    """The audits of one task and certificate, as the ledger has them, and the state that follows from them."""

    def __init__(self, monitor: Monitor, ledger: Ledger, task: str, certificate: str, *, why: str) -> None:
        """`monitor` is as at go-live; `why` is written down with its first state. Raise LedgerUnavailable."""
        self.monitor, self._ledger, self._task, self._certificate = monitor, ledger, task, certificate
        self._seq = 0
        self._reading: asyncio.Task[None] | None = None
        """Reads the ledger for all who wait: a lock would wake them one after the other."""
        self._found: list[StateRow] = []
        """Changes that the ledger does not have yet."""
        with suppress(AlreadyRecorded):  # another process may be first
            ledger.append(self.row("", monitor.state, SHADOW_WHY if monitor.state == "shadow" else why, after_audit=0))
        self.since = ledger.entries(StateRow, task=task, certificate=certificate)[0].at
        """When the certificate went live."""
        self._read_at_s = time.monotonic()
        while self._replay(self._new()):
            pass
        for row in self._found:  # of a process that was killed before it wrote them
            self._write(row)
        self._found.clear()

    def row(self, before: str, after: str, why: str, cause: str = "", after_audit: int | None = None) -> StateRow:
        """Return a change of state, or a note, as it is written."""
        values = {"before": before, "after": after, "why": why, "cause": cause, "after_audit": after_audit}
        of = {"task": self._task, "certificate": self._certificate}
        return StateRow.model_validate({"at": datetime.now(UTC), **of, **values})

    async def follow(self, *, older_than_s: float = 0.0) -> None:
        """Count what was written up to now, or up to `older_than_s` ago; who waits shares one reading of the ledger.

        Raise LedgerUnavailable.
        """
        at_s = time.monotonic() - older_than_s
        while not self._is_read_since(at_s):
            if self._reading is None or self._reading.done():
                self._reading = asyncio.get_running_loop().create_task(self._read())
            await asyncio.shield(self._reading)

    async def _read(self) -> None:
        now = time.monotonic()
        while self._replay(await asyncio.to_thread(self._new)):
            pass
        while self._found:
            await asyncio.to_thread(self._write, self._found[0])
            self._found.pop(0)
        self._read_at_s = now

    def _is_read_since(self, at_s: float) -> bool:
        """Return True if a reading began since then, and each change of state that was found is written."""
        return not self._found and self._read_at_s > at_s

    async def take(self, audit: AuditRow) -> bool:
        """Count a verdict; return False if the audit has one already, from whichever process: it is final."""
        try:
            await self._ledger.append_async(audit)
        except AlreadyRecorded:
            return False
        await self.follow()
        return True

    def _new(self) -> Any:
        return self._ledger.audits(self._task, self._certificate, after=self._seq)

    def _replay(self, rows: Any) -> bool:
        """Count audits in their order; return False if there were none."""
        for row in rows:
            judged = {"certified": row.certified, "answered_at": row.answered_at, "at": row.at}
            if change := self.monitor.record(row.wrong, row.weight, **judged):
                self._found.append(self.row(*change[:2], change.why, change.cause, row.seq))
            self._seq = row.seq
        return bool(rows)

    def _write(self, row: StateRow) -> None:
        with suppress(AlreadyRecorded):  # another process has found it too
            self._ledger.append(row)
            _log.warning("%s: %s -> %s: %s", row.task, row.before, row.after, row.why)


class AuditedRouter(DelegatingModel):
    """A Router with audits, itself a Model."""

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
        self.certificate, self.monitor = router.certificate.fingerprint(), monitor
        self.audits = Audits(monitor, ledger, self.name, self.certificate, why=self.outcome.in_short)
        self._rng = rng or random.SystemRandom()
        self._tasks: set[asyncio.Task[None]] = set()
        self._audit_slots = asyncio.Semaphore(MAX_CONCURRENT_AUDITS)

    @property
    def standing(self) -> Standing:
        """What is in force now: the outcome, narrowed by the monitor's state."""
        return self.outcome.standing(self.monitor.state)

    async def follow(self) -> None:
        """Take over what other processes have written, unless that was done a moment ago. Raise LedgerAway."""
        try:
            await self.audits.follow(older_than_s=FOLLOW_S)
        except LedgerUnavailable as error:
            raise LedgerAway(error.args[0], hint=error.hint) from None

    @property
    def paused(self) -> str:
        """Why the large model answers everything at the moment; empty while the small one may answer."""
        if self.monitor.state == "shadow":
            return SHADOW_WHY
        if self.monitor.state != "fallback":
            return ""
        by_gate = any(watch.exceeded and watch.quantity.by_gate for watch in self.monitor.watches)
        return f"the {'gate' if by_gate else 'guarantee'} was found broken on live answers"

    def gave(self, completion: Completion) -> bool:
        """Return True if one of the Router's own models wrote the answer: their names contain the version."""
        return completion.answered_by in self._own_models

    async def decide(self, request: Request) -> Decision:
        """Decide who answers a request; `settle` takes the answer. Raise LedgerAway."""
        await self.follow()
        return await self.router.decide(request, paused=self.paused)

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

    async def aclose(self) -> None:
        """Wait for running audits, then close the models."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=30)
        await self.router.aclose()

    async def _note_answer(self, completion: Completion, decision: Decision) -> Completion:
        """Return the answer as it is given: drawn for an audit or not, and whether it differs from a draft."""
        completion = await note_difference(completion, decision, self.auditing.agrees)
        route = completion.route
        if route is None:
            return completion
        # A person sees answers, so drafts beside the large model's are compared where that one judges.
        drafted_beside = self.auditing.judge == "large" and self.paused and route.why == self.paused
        if not (self._is_audited(route) or drafted_beside):
            return completion
        last = route.certified and route.stage == self.router.stages[-1].name
        share, weight = self.monitor.plan_audit(route.confidence if last else None)
        drawn = {"audit_share": share, "audit_weight": weight, "audited": self._rng.random() < share}
        return completion.model_copy(update={"route": route.model_copy(update=drawn)})

    def _is_small(self, route: Route) -> bool:
        """Return True if the cascade's own model gave the answer as it was evaluated: no policy and no setting did."""
        return took_cascade(route) and answerer(route.stage) is Answerer.SMALL

    def _is_audited(self, route: Route) -> bool:
        """Return True if audits watch such a small answer: the certificate covers it, or the gate was about all."""
        return self._is_small(route) and (self.monitor.audits_all or is_covered(route.trail))

    @property
    def _own_models(self) -> set[str]:
        return {stage.model.name for stage in (*self.router.stages, *self.router.options.policy_stages)}

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
        if self.auditing.judge == "large" and len(self._tasks) < MAX_WAITING_AUDITS:
            counts = self.monitor.state == "shadow" if in_shadow is None else in_shadow
            task = asyncio.get_running_loop().create_task(
                self._audit(id, request, completion, datetime.now(UTC), ask_large, in_shadow=counts)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask_large(self, id: str, request: Request, ask: AskLarge | None) -> Completion:
        bill = Bill()
        try:
            if ask is not None:
                return await ask()
            assert self.router.large is not None
            return await self.router.large.complete(request.as_evaluated.model_copy(update={"bill": bill}))
        finally:
            if bill.attempts:
                await self.ledger.append_async(*attempt_rows(id, bill.attempts, purpose="audit"))

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
        """Compare an accepted answer with the large model's, or in fallback and shadow a draft with the answer."""
        route = completion.route
        assert route is not None
        assert route.audit_share is not None
        async with self._audit_slots:
            try:
                certified = is_covered(route.trail)
                if self._is_small(route):
                    other = await self._ask_large(id, request, ask)
                    draft, charges = completion.text, other.charges
                elif request.temperature > 0:
                    return  # the answer was drawn by chance, and no other one is asked for: it judges nothing
                else:
                    decision = await self.router.decide(request.as_evaluated)
                    answered_at = datetime.now(UTC)
                    if in_shadow and self.second_look is not None:
                        await self.second_look.compared(id, request, decision, completion, state=self.monitor.state)
                    if decision.model is not None or decision.draft is None or not self._is_audited(decision.route):
                        return  # it would not have been answered, or nothing is watched about it
                    certified = is_covered(decision.route.trail)
                    other, draft, charges = completion, decision.draft.text, decision.charges
            except (ModelError, LedgerUnavailable) as error:
                _log.warning("%s: not audited, %s", id, error.args[0])
                return
        judged = other.text
        task = None if self.auditing.agreement else self.auditing.task
        judges = not other.refusal and (task is None or task.parse(judged) is not None)
        if not judges and other is completion:
            return  # no draw asked for it, so no verdict is missing
        wrong = not (judges and await asyncio.to_thread(self.auditing.agrees, draft, judged))
        values = {"at": datetime.now(UTC), "wrong": wrong, "certified": certified}
        values["judged_by"] = "large" if judges else "nobody"
        values["answered_at"] = answered_at
        values |= {"cost_usd": total_usd(charges), "charges": charges_json(with_purpose(charges, "audit"))}
        values |= {"draft": draft, "other": judged} if self.auditing.store_bodies else {}
        try:  # unless a person was quicker
            await self.audits.take(self._audit_row(id, route.audit_share, route.audit_weight, values))
        except LedgerUnavailable as error:
            _log.warning("%s: not audited, %s", id, error.args[0])

    async def feedback(self, feedback: FeedbackRow) -> FeedbackRow:
        """Record feedback; return it with whether it is an audit's verdict: a judge's first one, where chance drew."""
        if feedback.judge and (verdict := await asyncio.to_thread(self._verdict, feedback)) is not None:
            feedback = feedback.model_copy(update={"counted": await self.audits.take(verdict)})
        await self.ledger.append_async(feedback)
        return feedback

    def _verdict(self, feedback: FeedbackRow) -> AuditRow | None:
        """Return what a judge's feedback says about an audit; None if chance drew none, or it has its verdict."""
        row = self.ledger.get(feedback.id)
        if row is None or not row.audited or row.audit_share is None or self.ledger.count(AuditRow, id=row.id):
            return None
        if row.at < self.audits.since or row.answered_by not in self._own_models:
            return None  # an answer of another model, or under another certificate, tells nothing about this one
        values = {"at": feedback.at, "answered_at": row.at, "judged_by": "person"}
        values |= {"wrong": feedback.verdict == "wrong", "certified": row.certified or is_covered(row.steps)}
        values["other"] = feedback.answer if self.auditing.store_bodies else None
        return self._audit_row(row.id, row.audit_share, row.audit_weight, values)

    def _audit_row(self, id: str, share: float, weight: float, values: dict[str, Any]) -> AuditRow:
        drawn = {"id": id, "propensity": share, "weight": weight}
        return AuditRow.model_validate({"task": self.name, "certificate": self.certificate, **drawn, **values})


async def note_difference(completion: Completion, decision: Decision, agrees: Callable[[str, str], bool]) -> Completion:
    """Return the answer with a note in its last step if another model gave it and it differs from the draft."""
    route, draft = completion.route, decision.draft
    if decision.model is None or draft is None or route is None or route.trail[-1].decision != "answered":
        return completion
    if await asyncio.to_thread(agrees, draft.text, completion.text):
        return completion
    trail = (*route.trail[:-1], route.trail[-1].model_copy(update={"differs": True}))
    return completion.model_copy(update={"route": route.model_copy(update={"trail": trail})})


def outcome_of(router: Router) -> Outcome:
    """Return the outcome of a version that brings none: what its certificate lets it answer."""
    certificate = router.certificate
    live, keeps = certificate.issued, certificate.below == "keep"
    rest: Literal["", "large", "person"] = "" if keeps else "person" if certificate.below == "abstain" else "large"
    return Outcome(
        kind="keep the large model" if not live else "small alone" if keeps else "small first",
        title=router.stages[-1].model.name,
        promise=router.guarantee if certificate.issued else "",
        large=router.large is not None,
        rest=rest if live and (router.large or rest != "large") else "",
        watched_by="" if not certificate.issued else "large" if router.large else "person",
        why="" if certificate.issued else certificate.report.why,
    )
