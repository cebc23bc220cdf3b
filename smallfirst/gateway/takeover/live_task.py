"""One learnt task in front of its upstream: who answers a request, the watch over it, and the step back.

The task's own Router decides by its certificate, and the same monitor audits it as behind `smallfirst serve`. Requests
outside the share that was taken over pass, and the small model's drafts are compared with the upstream's answers there.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from smallfirst.deployment.task_deployment import DeployedVersion, TargetVersions, TaskDeployment
from smallfirst.gateway.takeover.background import BackgroundTasks
from smallfirst.gateway.takeover.step_back import DraftWatch, WordingWatch
from smallfirst.gateway.takeover.takeovers import Cause, State, TakeOver
from smallfirst.gateway.takeover.upstream import Asked, Upstream, audit_of
from smallfirst.models.protocol import Completion, Route
from smallfirst.pricing.prices import PriceBook
from smallfirst.project.task_file import read_task_file
from smallfirst.routing.types import Decision
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow, StateRow
from smallfirst.serving.request_lifecycle import route_columns, usage_columns
from smallfirst.traffic.messages import Answer
from smallfirst.traffic.task_source import TaskSource

_log = logging.getLogger("smallfirst.takeover")
LEARNT = "learnt"
"""Folder of the learnt task below that of the drafted one."""
COMPARED_BESIDE = 0.25
"""Share of the requests outside the share taken over whose drafts are compared; in shadow all are."""
OUTSIDE = "outside the share that was taken over"
Changed = Callable[[TakeOver], object]
"""Is told that a task has changed its state."""


class Ruling(NamedTuple):
    """Who answers a request: the small model if there is an answer, else the upstream."""

    task: LiveTask
    asked: Asked
    decision: Decision | None = None
    """The Router's; None for a request outside the share."""
    small: Completion | None = None
    """The small model's certified answer."""
    answer: Answer | None = None
    """The same as the upstream would have written it."""


class LiveTask:
    """A learnt task whose models are loaded."""

    def __init__(
        self,
        taken: TakeOver,
        upstream: Upstream,
        deployed: DeployedVersion,
        ledger: Ledger,
        changed: Changed,
        *,
        agreement: bool,
    ) -> None:
        """`agreement`: right is what the large model answered; else people's answers certify."""
        self.taken, self.upstream, self.deployed, self.agreement = taken, upstream, deployed, agreement
        self.source, self.router, upstream.noticed = upstream.source, deployed.router, self.noticed_model
        self._ledger, self._changed = ledger, changed
        self._wording, self._drafts = WordingWatch(), DraftWatch()
        self._background = BackgroundTasks()

    @classmethod
    def load(cls, taken: TakeOver, ledger: Ledger, changed: Changed, prices: PriceBook | None = None) -> LiveTask:
        """Load a learnt task's models, which takes seconds. Raise what `TaskDeployment` raises."""
        source = TaskSource.of(taken.folder)
        assert source is not None
        upstream = Upstream(source, prices or PriceBook())
        deployment = TaskDeployment(read_task_file(taken.folder / LEARNT), ledger, large=upstream)
        wanted = TargetVersions(taken.version) if taken.version else deployment.target_versions()
        deployed = deployment.load(wanted)
        upstream.usual_usd = deployed.router.router.options.expected_cost_usd.get("large", 0.0)
        agreement = deployment.file.routing.labels == "large"
        return cls(taken, upstream, deployed, ledger, changed, agreement=agreement)

    async def rule(self, asked: Asked) -> Ruling:
        """Decide who answers a request that follows the task's wording."""
        if wrong := self._wording.followed(asked.text):
            self.step_back("prompt", wrong)
        self._follow_monitor()
        if not self._in_share(asked.id):
            return Ruling(self, asked)
        decision = await self.router.decide(asked.request)
        draft = decision.draft
        if decision.model is not None or draft is None or not decision.route.certified:
            return Ruling(self, asked, decision)
        answer = self._rendered(asked, draft.text)
        if answer is None:
            return Ruling(self, asked)
        return Ruling(self, asked, decision, draft, answer)

    async def answered(self, ruling: Ruling) -> Completion:
        """Note that the small model's answer was given, and audit it if chance selects it; return it as noted."""
        assert ruling.decision is not None
        assert ruling.small is not None
        noted = await self.router.settle(ruling.decision, ruling.small)
        self._note(ruling.asked, noted)
        return noted

    async def passed(self, ruling: Ruling, response: dict[str, Any] | None, *, latency_ms: float = 0.0) -> None:
        """Note what the upstream answered to a request that was passed, and compare the small model's draft with it."""
        completion = self.upstream.read(ruling.asked, response, latency_ms=latency_ms)
        if completion is None:
            return
        if ruling.decision is not None and ruling.decision.model is not None:
            noted = await self.router.settle(ruling.decision, completion)
            last = noted.route.trail[-1] if noted.route and ruling.decision.draft else None
            if last and self.taken.state == "live" and (wrong := self._drafts.compared(last.differs)):
                self.step_back("model", wrong)
            self._note(ruling.asked, noted)
            return
        share = COMPARED_BESIDE if self.taken.live_share else 1.0
        drawn = ruling.decision is None and random.random() < share
        why = OUTSIDE if ruling.decision is None else ruling.decision.route.why
        route = Route(stage="large", why=why, certified=False, task=self.router.name, audit_share=share, audited=drawn)
        self._note(ruling.asked, completion.model_copy(update={"route": route}))

    def missed(self) -> None:
        """Note a request that resembles the task's wording and does not follow it."""
        if wrong := self._wording.missed():
            self.step_back("prompt", wrong)

    def noticed_model(self, model: str) -> None:
        """Note which model the upstream's response names."""
        if model != self.source.teacher.model and self.source.teacher.model:
            learnt = self.source.teacher.model
            self.step_back("model", f"the upstream answers with {model}, and the task was learnt from {learnt}")

    def step_back(self, cause: Cause, why: str) -> None:
        """Let the upstream answer everything again, and say why; nothing changes if it has stepped back already."""
        if self.taken.state == "live":
            self._move("stepped back", cause, why)

    async def aclose(self) -> None:
        """Wait for what is under way, then free the models."""
        await self._background.wait()
        await self.deployed.aclose()

    def _follow_monitor(self) -> None:
        """Step back in a fallback of the monitor, and return when audits have ended it."""
        monitor, taken = self.router.monitor, self.taken
        if monitor.state == "fallback" and taken.state == "live":
            last = monitor.alarms[-1] if monitor.alarms else None
            cause: Cause = "guarantee" if last is None or last.cause == "guarantee" else "drift"
            self._move("stepped back", cause, last.why if last else self.router.paused)
        elif monitor.state == "live" and taken.state == "stepped back" and taken.cause in ("guarantee", "drift"):
            self._move("live", taken.cause, "audits show the guarantee again")

    def _move(self, state: State, cause: Cause, why: str) -> None:
        before, self.taken = self.taken.state, self.taken.moved(state, cause=cause, why=why)
        _log.warning("%s: %s -> %s: %s", self.taken.task, before, state, why)
        row = StateRow(
            at=datetime.now(UTC), task=self.taken.task, before=before, after=state, why=why, cause=cause, certificate=""
        )
        self._background.start(self._ledger.append_async(row))
        self._changed(self.taken)

    def _in_share(self, id: str) -> bool:
        share = self.taken.live_share
        drawn = int.from_bytes(hashlib.sha256(f"{self.taken.task}:{id}".encode()).digest()[:6]) / 2**48
        return drawn < share

    def _rendered(self, asked: Asked, text: str) -> Answer | None:
        try:
            return (asked.answer_format or self.source.answer_format).render(text)
        except (ValueError, TypeError, KeyError):
            _log.warning("%s: an answer cannot be written in the upstream's format", self.taken.task)
            return None

    def _note(self, asked: Asked, completion: Completion) -> None:
        """Write the ledger's row, and hand the answer to the audits."""
        with audit_of(asked):
            self.router.answered(asked.id, asked.request, completion)
        self._background.start(self._ledger.append_async(ledger_row(asked, completion)))


def ledger_row(asked: Asked, completion: Completion) -> LedgerRow:
    """Return the ledger's row of an answer to a request of a task."""
    route = completion.route
    assert route is not None
    return LedgerRow(
        id=asked.id,
        at=datetime.now(UTC),
        served_name=str(asked.body.get("model") or "")[:128],
        status=200,
        latency_ms=completion.latency_ms,
        answered_by=completion.answered_by,
        stage=route.stage,
        certified=route.certified,
        confidence=route.confidence,
        threshold=route.threshold,
        **usage_columns(completion),
        **route_columns(route),
    )
