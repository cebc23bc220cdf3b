"""One served answer for its page: the steps to it, and the lines of its bill."""

from __future__ import annotations

from typing import Any

from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.openai.errors import ApiError


def answer_details(ledger: Ledger, id: str, *, owner: str | None) -> dict[str, Any]:
    """Return what the ledger holds about an answer, without texts. Raise ApiError 404 if it is unknown.

    With `owner` only answers to that owner's keys are known.
    """
    row = ledger.get(id)
    if row is None or (owner is not None and row.owner != owner):
        raise ApiError(404, "There is no answer with this id.", param="id", code="answer_not_found")
    texts = {"request_text", "answer_text", "request_sha256", "charges", "trail"}
    lists = {"bill": row.bill, "steps": row.steps}
    return row.model_dump(mode="json", exclude=texts) | {
        name: [one.model_dump(mode="json") for one in found] for name, found in lists.items()
    }
