"""The review queue: answers that a judge's label would help, those that it helps most first, and its HTTP routes.

An audit comes first: chance drew it, so its verdict moves the bound. Then what a user called wrong, what the Router
left to a person, answers on which draft and large answer differ (the surest draft first), and last those with a
confidence near the certificate's threshold. Labels of answers that chance did not draw train, and measure nothing. A
mark is feedback (`POST /v1/feedback`); of the judges' marks on an answer the last stands, and says whose it is.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from smallfirst.base.errors import ModelError
from smallfirst.data.pages import PagePlace, is_document, kept_span, marked_passages
from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow, StateRow, standing
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.stages import Answerer, answerer
from smallfirst.serving.errors import ApiError
from smallfirst.serving.plugins import PluginRequest, PluginRoute

N_RECENT = 1_000
"""Newest answers of a task, of each kind, that are looked at: drawn, left to a person, any."""
_CLOCKS_DIFFER = timedelta(hours=1)
Reason = Literal["audit", "reported", "unsure", "disagreement", "near"]
REASONS: tuple[Reason, ...] = ("audit", "reported", "unsure", "disagreement", "near")
"""Why an answer is in the queue, in the order of what a label brings."""
DUE = REASONS[:3]
"""Reasons for which an answer waits for a judge; for the others a label helps, and nobody waits."""


class Waiting(NamedTuple):
    """An answer in the queue."""

    row: LedgerRow
    reason: Reason
    why: str
    """The reason with its figures, in one clause."""
    doubt: float = 0.0
    """Greater comes first among equal reasons, then the older."""


def review_queue(ledger: Ledger, tasks: Iterable[str], *, recent: int = N_RECENT) -> list[Waiting]:
    """Return the answers of `tasks` that a label would help, the most helpful first.

    A text that a judge has marked already, or that comes earlier, is left out where chance did not draw it.
    """
    found = [one for task in tasks for one in _of_task(ledger, task, recent)]
    found.sort(key=lambda one: (REASONS.index(one.reason), -one.doubt, one.row.at))
    seen: set[str] = set()
    kept = []
    for one in found:
        text = one.row.request_sha256
        if one.reason in DUE or text is None or text not in seen:
            kept.append(one)
        if text is not None:
            seen.add(text)
    return kept


def _of_task(ledger: Ledger, task: str, recent: int) -> Iterator[Waiting]:
    newest = ledger.entries(LedgerRow, task=task, limit=recent) if recent else ()
    rows = [row for row in newest if row.status == 200 and row.request_text and row.answer_text is not None]
    drawn = ledger.entries(LedgerRow, task=task, audited="1", limit=N_RECENT)
    drawn = tuple(row for row in drawn if row.certified or answerer(row.stage) is not Answerer.LARGE)
    left = ledger.entries(LedgerRow, task=task, stage=Answerer.PERSON.value, limit=N_RECENT)
    oldest = min((row.at - _CLOCKS_DIFFER for row in (*rows, *drawn, *left)), default=None)
    said: dict[str, list[FeedbackRow]] = defaultdict(list)
    for one in standing(ledger.entries(FeedbackRow, since=oldest)):
        said[one.id].append(one)
    judged = {id for id, verdicts in said.items() if any(one.judge for one in verdicts)}
    audited = {audit.id for audit in ledger.entries(AuditRow, task=task, since=oldest)}
    due = {one.row.id: one for one in _drawn(drawn, judged | audited, _in_force_since(ledger, task))}
    for row in left:
        if row.id not in judged:
            due[row.id] = Waiting(row, "unsure", f"no model was sure{_measured(row)}: left to a person")
    due |= {one.row.id: one for one in _reported(ledger, task, said, audited)}
    yield from due.values()
    marked = {row.request_sha256 for row in rows if row.id in judged}
    for row in rows:
        if row.id not in due and row.id not in judged and row.request_sha256 not in marked:
            yield from _helpful(row)


def _drawn(rows: Iterable[LedgerRow], done: Collection[str], since: datetime | None) -> Iterator[Waiting]:
    for row in rows:
        if row.id not in done:
            counts = since is None or row.at >= since
            what = "its verdict counts for the guarantee" if counts else "under an earlier certificate, counts no more"
            yield Waiting(row, "audit", f"drawn by chance: {what}", float(counts))


def _reported(
    ledger: Ledger, task: str, said: Mapping[str, Sequence[FeedbackRow]], audited: Collection[str]
) -> Iterator[Waiting]:
    """Yield answers that a user called wrong and nobody has judged."""
    for id, verdicts in list(said.items())[-N_RECENT:]:
        wrong = any(one.verdict == "wrong" for one in verdicts) and not any(one.judge for one in verdicts)
        row = ledger.get(id) if wrong and id not in audited else None
        if row is not None and row.task == task:
            yield Waiting(row, "reported", "a user called it wrong")


def _helpful(row: LedgerRow) -> Iterator[Waiting]:
    """Yield the answer if draft and large answer differ, or its confidence is near the threshold."""
    if row.steps and row.steps[-1].differs:
        why = f"the small model said something else{_measured(row)}"
        yield Waiting(row, "disagreement", why, row.confidence or 0.0)
    elif row.confidence is not None and row.threshold is not None and row.threshold <= 1:
        far = row.confidence - row.threshold
        where = f"{abs(far):.3f} {'above' if far >= 0 else 'below'} the threshold of {row.threshold:.3f}"
        yield Waiting(row, "near", f"confidence {where}", -abs(far))


def _measured(row: LedgerRow) -> str:
    return "" if row.confidence is None else f" (confidence {row.confidence:.3f})"


def _in_force_since(ledger: Ledger, task: str) -> datetime | None:
    """Return when the certificate in force went live; None if the ledger does not say."""
    states = [state for state in ledger.entries(StateRow, task=task) if state.certificate]
    return next((state.at for state in states if state.certificate == states[-1].certificate), None)


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
            "passages": _read(row),
            "draft": draft and {"model": draft.answered_by, "answer": draft.text, "confidence": draft.confidence},
            "marks": [mark(one) for one in said],
            **_choices(router, row, draft, [one.answer for one in said if one.answer]),
        }


def _read(row: LedgerRow) -> list[dict[str, Any]]:
    """Return what stands around the values that were read in a stored document, with their names."""
    asked = [content for role, content in json.loads(row.request_text or "[]") if role == "user"]
    if not asked or not is_document(asked[-1]):
        return []
    places = {path: place for step in row.steps for path, place in step.read.items() if place and place.page}
    spans = {path: kept_span(asked[-1], PagePlace(p.page, p.offset), p.end - p.start) for path, p in places.items()}
    found = marked_passages(asked[-1], {path: span for path, span in spans.items() if span})
    return [{"page": one.page, "pieces": [piece._asdict() for piece in one.pieces]} for one in found]


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
