"""Which parts of a ledger's entry are what people wrote: they stand beside the ledger, redacted, and are forgotten.

An answer has its question and itself, an audit the two answers that were held against each other. What somebody says as
feedback is written down with it, redacted: it is a correction, sent to be kept.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, TypeVar

from smallfirst.data.redaction import redact
from smallfirst.serving.ledger.body_store import Body
from smallfirst.serving.ledger.rows import AuditRow, Entry, FeedbackRow, LedgerRow

E = TypeVar("E", LedgerRow, AuditRow, FeedbackRow, Any)


class Text(NamedTuple):
    """What `Bodies.put` takes."""

    place: str
    request_text: str | None
    answer_text: str | None


def place_of(row: Entry) -> str:
    """Under which id an entry's texts are kept; empty for one that has none."""
    match row:
        case LedgerRow():
            return row.id
        case AuditRow():
            return f"{row.id}/{row.judged_by}"
    return ""


def text_of(row: Entry) -> Text | None:
    """An entry's texts; None if it brings none."""
    match row:
        case LedgerRow() if row.request_text is not None or row.answer_text is not None:
            return Text(place_of(row), row.request_text, row.answer_text)
        case AuditRow() if row.draft is not None or row.other is not None:
            return Text(place_of(row), None if row.draft is None else _as_json(row.draft), row.other)
    return None


def without_text(row: Entry) -> dict[str, object]:
    """What of an entry is written otherwise into the ledger itself."""
    match row:
        case LedgerRow():
            return {"request_text": None, "answer_text": None}
        case AuditRow():
            return {"draft": None, "other": None}
        case FeedbackRow() if row.answer is not None:
            return {"answer": redact(row.answer).text}
    return {}


def with_text(row: E, body: Body | None) -> E:
    """The entry with its texts; one that has texts of its own (of an older ledger) as it is."""
    if body is None:
        return row
    if isinstance(row, LedgerRow) and row.request_text is None:
        return row.model_copy(update=body._asdict())
    if isinstance(row, AuditRow) and row.draft is None:
        draft = None if body.request_text is None else _of_json(body.request_text)
        return row.model_copy(update={"draft": draft, "other": body.answer_text})
    return row


def _as_json(text: str) -> str:
    """A text in the form in which questions are kept: turns of role and content."""
    return json.dumps([["assistant", text]], ensure_ascii=False)


def _of_json(turns: str) -> str:
    content: str = json.loads(turns)[0][1]
    return content
