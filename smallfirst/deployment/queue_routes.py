"""HTTP routes of the review queue: list it, and show one answer with what it takes to mark it.

A mark is feedback (`POST /v1/feedback`). Of the judges' marks on an answer the last stands, and says whose it is.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from smallfirst.base.errors import ModelError
from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.review_queue import REASONS, Waiting, review_queue
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import FeedbackRow, LedgerRow, standing
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.plugins import PluginRequest, PluginRoute

_MAX_LISTED = 200
_PATIENCE_S = 3.0
_DIGITS = 9
"""As many labels have a digit each, always the same one; of more labels the likeliest are offered."""


class QueueRoutes:
    """The routes over the Routers of one server."""

    def __init__(self, by_task: Mapping[str, AuditedRouter], ledger: Ledger) -> None:
        self._by_task, self._ledger = by_task, ledger
        self.routes = (
            PluginRoute("GET", "/v1/queue", self._list, "judge"),
            PluginRoute("GET", "/v1/queue/{id}", self._item, "judge"),
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

    async def _list(self, call: PluginRequest) -> dict[str, Any]:
        task = dict(call.query).get("task")
        tasks = [name for name in self._by_task if task in (None, name)]
        found = await asyncio.to_thread(review_queue, self._ledger, tasks)
        counts = Counter(one.reason for one in found)
        reasons = {reason: counts[reason] for reason in REASONS}
        data = [_facts(one) for one in found[:_MAX_LISTED]]
        return {"object": "list", "data": data, "has_more": len(found) > _MAX_LISTED, "reasons": reasons}

    async def _item(self, call: PluginRequest) -> dict[str, Any]:
        row = await asyncio.to_thread(self._ledger.get, call.path_params["id"])
        router = self._by_task.get(row.task or "") if row else None
        if row is None or router is None or row.status != 200:
            raise ApiError(404, "There is no answer with this id.", param="id", code="answer_not_found")
        said = standing(await asyncio.to_thread(self._ledger.entries, FeedbackRow, id=row.id))
        small, task = router.router.stages[-1].model, router.auditing.task
        asked = (task is not None and bool(task.closed)) or row.answered_by != small.name
        draft = await _ask(small, row) if asked else None
        shown = ("id", "task", "answered_by", "certified", "confidence", "threshold")
        return {
            "object": "queue.item",
            **{name: getattr(row, name) for name in shown},
            "at": row.at.isoformat(),
            "question": json.loads(row.request_text or "[]"),
            "answer": row.answer_text,
            "draft": draft and {"model": draft.answered_by, "answer": draft.text, "confidence": draft.confidence},
            "marks": [mark(one) for one in said],
            **_choices(router, row, draft, [one.answer for one in said if one.answer]),
        }


def mark(said: FeedbackRow) -> dict[str, Any]:
    """Return a verdict as it is shown: by whom, and what it says."""
    shown = said.model_dump(mode="json", include={"judge", "verdict", "answer", "at"})
    return {"by": said.name or said.caller[:8] or "somebody", **shown}


async def _ask(model: Model, row: LedgerRow) -> Completion | None:
    """Return what a model says to a stored question; None where it fails or takes too long."""
    turns = [{"role": role, "content": content} for role, content in json.loads(row.request_text or "[]")]
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await model.complete(Request.model_validate({"messages": turns})) if turns else None
    except (ModelError, TimeoutError):
        return None


def _facts(one: Waiting) -> dict[str, Any]:
    row = one.row
    known = {"id": row.id, "task": row.task, "at": row.at.isoformat(), "stage": row.stage}
    return {**known, "reason": one.reason, "why": one.why}


def _choices(router: AuditedRouter, row: LedgerRow, draft: Completion | None, named: Sequence[str]) -> dict[str, Any]:
    """Return what an answer may be: all labels with the likeliest to offer, or the schema of a JSON answer."""
    task = router.auditing.task
    if task is None:
        return {"kind": "text"}
    if not task.closed:
        schema, labels = task.answer_schema(), task.answer_labels
        return {"kind": "json" if schema or labels else "text", "labels": labels, "schema": schema}
    likely = [draft.text, *(name for name, _ in draft.alternatives)] if draft else []
    offered = dict.fromkeys(map(task.parse, [row.answer_text or "", *named, *likely]))
    few = len(task.closed) <= _DIGITS
    offer = task.closed if few else [label for label in offered if label is not None][:_DIGITS]
    return {"kind": "label", "labels": task.closed, "offer": offer}
