"""What the ledger holds about each text of a task: who gave or judged an answer, and what they said.

Of several words of one person, or several audits by one judge, the last stands. An answer of the large model to what
was found to be no request of the task says nothing about the task. The price: every audit and all feedback is read,
whatever its age, since a word may come long after the answer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from smallfirst.errors import ConfigError
from smallfirst.paths import home
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, LedgerRow

Source = Literal["feedback", "confirmed", "audit", "large", "suspect"]
TRUST: dict[Source, int] = {"feedback": 0, "confirmed": 1, "audit": 2, "large": 3, "suspect": 3}
"""The lower, the more: a person's own answer · an answer that a person calls right · a person's answer in an audit ·
the large model's, where it was asked · the same where it differs from the answer that was kept."""
BY_PEOPLE = 2
"""The least trust of a word that comes from a person."""


class Evidence(NamedTuple):
    """One answer to one text, and who stands for it or against it."""

    response_id: str
    at: datetime
    text: str
    """The last user message."""
    said: str
    """The answer."""
    source: Source
    against: bool = False
    """True if a person says that the answer is wrong."""


class CollectedEvidence(NamedTuple):
    """What was heard, and the responses about which nothing can be learned."""

    voices: list[Evidence]
    refused: dict[str, str]
    """By response id the reason, one of `result.REASONS`."""


def open_ledger(path: Path | None = None) -> Ledger:
    """The ledger at `path`, else that of the state folder. Raises ConfigError if there is none: none is made."""
    place = path or home() / "ledger.db"
    if not place.is_file():
        raise ConfigError(
            f"{place}: no such ledger",
            hint="name it with --ledger, or serve some requests first: smallfirst serve task.yaml --store-bodies",
        )
    return Ledger(place)


def collect(ledger: Ledger, task: str, since: datetime | None = None) -> CollectedEvidence:
    """Every voice on the answers of a task that came, or were last spoken of, at or after `since`."""
    audits: dict[str, list[AuditRow]] = defaultdict(list)
    for audit in ledger.entries(AuditRow, task=task):
        audits[audit.id].append(audit)
    feedback: dict[str, list[FeedbackRow]] = defaultdict(list)
    for said in ledger.entries(FeedbackRow):
        feedback[said.id].append(said)
    heard = CollectedEvidence([], {})
    for row in _rows(ledger, task, since, [*audits.values(), *feedback.values()]):
        voices = list(_voices(row, audits[row.id], feedback[row.id]))
        reason = _why_not(row, voices, audits[row.id])
        if reason:
            heard.refused[row.id] = reason
        # What is called wrong here is not learned from another response to the same text either.
        heard.voices.extend(voice for voice in _with_texts(row, voices) if voice.against or not reason)
    return heard


def is_outside(row: LedgerRow) -> bool:
    """True if the Router took the request for something else than the task's."""
    found = (step for step in row.steps if step.stage == "domain")
    return any(s.score is not None and s.threshold is not None and s.score > s.threshold for s in found)


def turns(row: LedgerRow) -> list[tuple[str, str]]:
    """Role and content of each message that was stored; empty if none was."""
    return [(role, content) for role, content in json.loads(row.request_text or "[]")]


def last_user_message(row: LedgerRow) -> str:
    """What was asked; empty if it was not stored."""
    return next((content for role, content in reversed(turns(row)) if role == "user"), "")


_Word = tuple[Source, str | None, bool]
"""Source, the answer (None if it was not stored), and whether it is called wrong."""


def _rows(
    ledger: Ledger, task: str, since: datetime | None, words: Sequence[Sequence[AuditRow | FeedbackRow]]
) -> Iterator[LedgerRow]:
    rows = {row.id: row for row in ledger.entries(LedgerRow, since=since, task=task)}
    if since is not None:
        late = {said[-1].id for said in words if said[-1].at >= since} - set(rows)
        found = (ledger.get(id) for id in sorted(late))
        rows |= {row.id: row for row in found if row is not None and row.task == task}
    yield from (row for row in rows.values() if row.status == 200)


def _voices(row: LedgerRow, audits: Sequence[AuditRow], feedback: Sequence[FeedbackRow]) -> Iterator[_Word]:
    for said in {f.caller: f for f in feedback}.values():
        if said.answer is not None:
            yield "feedback", said.answer, False
        elif said.verdict == "right":
            yield "confirmed", row.answer_text, False
        if said.verdict == "wrong":
            yield "feedback", row.answer_text, True
    last = {audit.judged_by: audit for audit in audits}
    if (person := last.get("person")) and person.other is not None:
        yield "audit", person.other, False
    large = last.get("large")
    if large and large.wrong:
        yield "suspect", large.other, False
    elif row.stage == "large" and not is_outside(row):
        yield "large", row.answer_text, False


def _why_not(row: LedgerRow, words: Sequence[_Word], audits: Sequence[AuditRow]) -> str:
    """Why nothing can be learned of a response; empty if something can, or if nobody said anything of it."""
    given = [said for _, said, against in words if not against]
    if not given:
        if words:
            return "told_wrong"
        return "outside" if row.stage == "large" else "agreed" if audits else ""
    if not last_user_message(row).strip() or not any(given):
        return "no_text"
    return "conversation" if sum(role != "system" for role, _ in turns(row)) > 1 else ""


def _with_texts(row: LedgerRow, words: Sequence[_Word]) -> Iterator[Evidence]:
    text = last_user_message(row)
    for source, said, against in words:
        if said and text.strip():
            yield Evidence(row.id, row.at, text, said, source, against)
