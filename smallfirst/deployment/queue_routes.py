"""HTTP routes of the review queue: list it, and claim the next answer with what it takes to mark it.

A mark is feedback (`POST /v1/feedback`), which moves a bound as any judge's verdict does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.review_queue import REASONS, Opinion, Waiting, conflict, recent_texts, review_queue
from smallfirst.errors import ModelError
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import FeedbackRow, LedgerRow, standing
from smallfirst.serving.ledger.shared_state import MemoryState, SharedState
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.plugins import PluginRequest, PluginRoute

LEASE_S = 120.0
"""Seconds for which an answer is held; each claim of it by its holder begins them anew."""
MARKED_S = 60.0
"""Seconds for which an answer that was marked is offered to nobody: longer than a process keeps its order of them."""
_SKIP_S = 3600.0
_MOST_SKIPPED = 2_000
_NAME = "review queue"
_NOBODY = ("", "\x1fmarked")
"""Holds an answer that was marked; no window has this name."""
R = TypeVar("R")
_Held = dict[str, tuple[str, str, float]]
"""By response id: owner and worker of the holder, and until when."""
_MAX_BODY_BYTES = 16 * 1024
_MAX_LISTED = 200
_ORDER_HOLDS_S = 20.0
"""Seconds for which the order is kept; what is marked leaves it at once."""
_ASKED_AT_ONCE = 200
"""Most answers about which other candidates are asked while somebody waits."""
_MOST_OPINIONS = 20_000
_PATIENCE_S = 3.0
_DIGITS = 9
"""As many labels have a digit each, always the same one; of more labels the likeliest are offered."""


class Holder(NamedTuple):
    """A person at work: a window of a browser, or a program."""

    owner: str
    """Owner of the key; empty where none is asked for."""
    worker: str
    """What tells apart two windows with the same key, or without one."""


class Leases:
    """Who holds which answer, and what each has skipped. Raise LedgerAway."""

    def __init__(self, state: SharedState | MemoryState) -> None:
        self._state = state

    async def holders(self) -> dict[str, Holder]:
        """Return who holds which answers now."""
        held = await self._state.update(_NAME, lambda value, now: (value, _current(value, now)[0]))
        return {id: Holder(owner, worker) for id, (owner, worker, _) in held.items() if (owner, worker) != _NOBODY}

    async def claim(self, ids: Sequence[str], holder: Holder, *, take_over: bool = False) -> str | None:
        """Hold the first of `ids` that nobody else holds and the holder has not skipped, and let go of all others."""

        def change(held: _Held, skipped: list[Any], now: float) -> str | None:
            mine = {id for *who, id, _ in skipped if tuple(who) == holder}
            free = (id for id in ids if id not in mine and tuple(held.get(id, (*holder, 0))[:2]) == holder)
            if (claimed := next(iter(ids), None) if take_over else next(free, None)) is not None:
                for id in [id for id, one in held.items() if tuple(one[:2]) == holder]:
                    del held[id]
                held[claimed] = (*holder, now + LEASE_S)
            return claimed

        return await self._change(change)

    async def skip(self, id: str, holder: Holder) -> None:
        """Let go of an answer and do not offer it to the holder again, for an hour."""

        def change(held: _Held, skipped: list[Any], now: float) -> None:
            skipped.append((*holder, id, now + _SKIP_S))
            if tuple(held.get(id, ())[:2]) == holder:
                del held[id]

        await self._change(change)

    async def release(self, id: str, *, marked: bool) -> None:
        """Let go of an answer; one that is marked is offered to nobody for a while."""

        def change(held: _Held, _: list[Any], now: float) -> None:
            held.pop(id, None)
            if marked:
                held[id] = (*_NOBODY, now + MARKED_S)

        await self._change(change)

    async def _change(self, change: Callable[[_Held, list[Any], float], R]) -> R:
        def of_value(value: Any, now: float) -> tuple[Any, R]:
            held, skipped = _current(value, now)
            result = change(held, skipped, now)
            return {"held": held, "skipped": skipped[-_MOST_SKIPPED:]}, result

        return await self._state.update(_NAME, of_value)


def _current(value: Any, now: float) -> tuple[_Held, list[Any]]:
    """Return copies of what is held and skipped still."""
    known = value or {"held": {}, "skipped": []}
    held = {id: one for id, one in known["held"].items() if one[2] > now}
    return held, [one for one in known["skipped"] if one[3] > now]


class QueueRoutes:
    """The routes over the Routers of one server."""

    def __init__(self, by_task: Mapping[str, AuditedRouter], ledger: Ledger) -> None:
        self._by_task, self._ledger, self.leases = by_task, ledger, Leases(ledger.shared)
        self._order: dict[str, Waiting] = {}
        self._made_at, self._making = float("-inf"), asyncio.Lock()
        self._opinions: dict[str, Opinion | None] = {}
        self._markers: dict[str, Holder] = {}
        """By response id who marked it last."""
        self._names: dict[str, str] = {}
        """Names of the keys of those who mark, by owner."""
        self.routes = (
            PluginRoute("GET", "/v1/queue", self._list, "judge"),
            PluginRoute("POST", "/v1/queue/claim", self._claim, "judge"),
        )

    async def verdict(self, row: LedgerRow, answer: str) -> dict[str, str]:
        """Return the verdict on an answer that the right one implies, and the right one in canonical form.

        Raise ApiError if the task has no such answer, or the answer that was given is not stored.
        """
        router = self._by_task.get(row.task or "")
        task = router.auditing.task if router else None
        if router is None or task is None or row.answer_text is None:
            raise ApiError(400, '`verdict` is "right" or "wrong".', param="verdict")
        right = task.parse(answer)
        if right is None:
            raise ApiError(400, f"{row.task} has no such answer.", param="answer", code="invalid_answer")
        agrees = await asyncio.to_thread(router.auditing.agrees, row.answer_text, right)
        return {"verdict": "right" if agrees else "wrong", "answer": right}

    async def marked(self, feedback: FeedbackRow, worker: str, earlier: Sequence[FeedbackRow]) -> dict[str, Any]:
        """Take an answer that was just marked out of the queue; return the others' marks, and whether they conflict."""
        id, me = feedback.id, Holder(feedback.caller, worker)
        self._order.pop(id, None)
        own = self._markers.get(id, me) == me
        self._markers[id] = me
        others = [one for one in standing(earlier) if one.judge and (one.caller != feedback.caller or not own)]
        differ = any(conflict(one, feedback) for one in others)
        await self.leases.release(id, marked=not differ)
        if differ:
            self._made_at = float("-inf")
        return {"others": [self._mark(one, me) for one in others], "conflict": differ}

    async def _list(self, call: PluginRequest) -> dict[str, Any]:
        query = dict(call.query)
        found = await self._ordered(query.get("task"))
        counts, held = Counter(one.reason for one in found), await self.leases.holders()
        data = [{**_facts(one), "held": one.row.id in held} for one in found[:_MAX_LISTED]]
        reasons = {reason: counts[reason] for reason in REASONS}
        return {"object": "list", "data": data, "has_more": len(found) > _MAX_LISTED, "reasons": reasons}

    async def _claim(self, call: PluginRequest) -> dict[str, Any]:
        """Hold the next answer for the caller, the one named by `id`, or by `take` also if somebody else holds it."""
        body = await call.json(max_bytes=_MAX_BODY_BYTES)
        for name, value in body.items():
            if name not in ("worker", "task", "id", "take", "skip") or not isinstance(value, str) or len(value) > 128:
                raise ApiError(400, "Fields are worker, task, id, take and skip, each a text.", param=name[:64])
        me = Holder(call.caller, body.get("worker", ""))
        self._names[call.caller] = call.caller_name
        if skipped := body.get("skip"):
            await self.leases.skip(skipped, me)
        waiting = await self._ordered(body.get("task"))
        named = body.get("take", body.get("id"))
        if named and "take" not in body and (await self.leases.holders()).get(named, me) != me:
            raise ApiError(409, "Somebody else holds this answer now.", param="id", code="held")
        ids = [named] if named else [one.row.id for one in waiting]
        claimed = await self.leases.claim(ids, me, take_over=named is not None)
        item = await self._item(claimed, me) if claimed else None
        return {"object": "queue.claim", "item": item, "waiting": len(waiting)}

    async def _item(self, id: str, me: Holder) -> dict[str, Any]:
        row = await asyncio.to_thread(self._ledger.get, id)
        router = self._by_task.get(row.task or "") if row else None
        if row is None or router is None or row.status != 200:
            await self.leases.release(id, marked=False)
            raise ApiError(404, "There is no answer with this id.", param="id", code="answer_not_found")
        said = await asyncio.to_thread(self._ledger.entries, FeedbackRow, id=id)
        small, task = router.router.stages[-1].model, router.auditing.task
        again = [small] if (task is not None and task.closed) or row.answered_by != small.name else []
        models = (*again, *await asyncio.to_thread(router.auditing.others))
        drafts = [one for one in await _ask(models, row) if one is not None]
        shown = ("answered_by", "certified", "confidence", "threshold")
        return {
            **_facts(self._order.get(id) or Waiting(row, "near", "")),
            "question": json.loads(row.request_text or "[]"),
            "answer": row.answer_text,
            **{name: getattr(row, name) for name in shown},
            "drafts": [{"model": one.answered_by, "answer": one.text, "confidence": one.confidence} for one in drafts],
            "marks": [self._mark(one, me) for one in standing(said)],
            "lease_s": LEASE_S,
            **_choices(router, row, drafts, [one.answer for one in standing(said) if one.answer]),
        }

    def _mark(self, said: FeedbackRow, me: Holder) -> dict[str, Any]:
        by = self._names.get(said.caller) or said.caller[:8] or "somebody"
        facts = {"by": by, "mine": said.caller == me.owner and self._markers.get(said.id, me) == me}
        return {**facts, "judge": said.judge, **said.model_dump(mode="json", include={"verdict", "answer", "at"})}

    async def _ordered(self, task: str | None) -> list[Waiting]:
        async with self._making:
            if time.monotonic() - self._made_at > _ORDER_HOLDS_S:
                if len(self._opinions) > _MOST_OPINIONS:
                    self._opinions.clear()
                for name, router in list(self._by_task.items()):
                    await self._ask_others(name, router)
                known = {id: one for id, one in self._opinions.items() if one is not None}
                found = await asyncio.to_thread(review_queue, self._ledger, list(self._by_task), known)
                self._order, self._made_at = {one.row.id: one for one in found}, time.monotonic()
        return [one for one in self._order.values() if task in (None, one.row.task)]

    async def _ask_others(self, task: str, router: AuditedRouter) -> None:
        """Ask cheap candidates about the newest answers, once about each, and keep the surest dissent."""
        if not (models := await asyncio.to_thread(router.auditing.others)):
            return
        rows = await asyncio.to_thread(recent_texts, self._ledger, task)
        new = [row for row in reversed(rows) if row.id not in self._opinions][:_ASKED_AT_ONCE]
        for row, given in zip(new, await asyncio.gather(*(_ask(models, row) for row in new)), strict=True):
            dissent = [one for one in given if one and not router.auditing.agrees(one.text, row.answer_text or "")]
            surest = max(dissent, key=lambda one: one.confidence or 0.0, default=None)
            said = Opinion(surest.answered_by, surest.text, surest.confidence or 0.0) if surest else None
            self._opinions[row.id] = said


async def _ask(models: Sequence[Model], row: LedgerRow) -> list[Completion | None]:
    """Return what each model says to a stored question; None where it fails or takes too long."""

    async def one(model: Model) -> Completion | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await model.complete(request)
        except (ModelError, TimeoutError):
            return None

    turns = [{"role": role, "content": content} for role, content in json.loads(row.request_text or "[]")]
    request = Request.model_validate({"messages": turns})
    return list(await asyncio.gather(*map(one, models))) if turns else []


def _facts(one: Waiting) -> dict[str, Any]:
    row = one.row
    known = {"id": row.id, "task": row.task, "at": row.at.isoformat(), "stage": row.stage}
    return {**known, "reason": one.reason, "why": one.why}


def _choices(
    router: AuditedRouter, row: LedgerRow, drafts: Sequence[Completion], named: Sequence[str]
) -> dict[str, Any]:
    """Return what an answer may be: all labels with the likeliest to offer, or the schema of a JSON answer."""
    task = router.auditing.task
    if task is None:
        return {"kind": "text"}
    if not task.closed:
        schema, labels = task.answer_schema(), task.answer_labels
        return {"kind": "json" if schema or labels else "text", "labels": labels, "schema": schema}
    likely = [label for one in drafts for label in (one.text, *(name for name, _ in one.alternatives))]
    offered = dict.fromkeys(map(task.parse, [row.answer_text or "", *named, *likely]))
    few = len(task.closed) <= _DIGITS
    offer = task.closed if few else [label for label in offered if label is not None][:_DIGITS]
    return {"kind": "label", "labels": task.closed, "offer": offer}
