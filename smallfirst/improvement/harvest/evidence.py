"""Collect from the ledger who gave or judged each answer of a task.

Of several judgements by one person, or several audits by one judge, the last counts. All audits and feedback are read,
whatever their age, since a judgement may come long after the answer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from smallfirst.errors import ConfigError
from smallfirst.paths import ledger_place
from smallfirst.serving.ledger.ledger import Ledger, open_existing
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, LedgerRow, standing

Source = Literal["feedback", "confirmed", "audit", "large", "suspect", "user"]
TRUST: dict[Source, int] = {"feedback": 0, "confirmed": 1, "audit": 2, "large": 3, "suspect": 3, "user": 4}
"""Rank of a source, 0 is the most trusted: a judge's own answer · an answer that a judge called right · a person's
answer in an audit, which a later word of the judge corrects · the large model's, where it was asked · the large
model's, where it differs from the accepted answer · the word of a user, who may not judge."""
BY_JUDGES = 2
"""Highest rank of a source that may judge."""


class Evidence(NamedTuple):
    """One answer to one text, with its source."""

    response_id: str
    at: datetime
    text: str
    """The last user message."""
    said: str
    source: Source
    against: bool = False


class CollectedEvidence(NamedTuple):
    """The evidence in the ledger, and the responses that give none."""

    voices: list[Evidence]
    refused: dict[str, str]
    """By response id the reason, one of `result.REASONS`."""


def open_ledger(place: Path | str | None = None) -> Ledger:
    """Open the ledger at a path or URL, by default `paths.ledger_place`. Raise ConfigError if it does not exist."""
    if (found := open_existing(place)) is None:
        raise ConfigError(
            f"{place or ledger_place()}: no such ledger",
            hint="name it with --ledger, or serve some requests first: smallfirst serve task.yaml --store-bodies",
        )
    return found


def collect(ledger: Ledger, task: str, since: datetime | None = None) -> CollectedEvidence:
    """Return the evidence on answers of a task that were given, or last judged, at or after `since`."""
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
    """Return True if the Router took the request for out of domain."""
    found = (step for step in row.steps if step.stage == "domain")
    return any(s.score is not None and s.threshold is not None and s.score > s.threshold for s in found)


def turns(row: LedgerRow) -> list[tuple[str, str]]:
    """Return role and content of each stored message; empty if none was stored."""
    return [(role, content) for role, content in json.loads(row.request_text or "[]")]


def last_user_message(row: LedgerRow) -> str:
    """Return the last user message; empty if it was not stored."""
    return next((content for role, content in reversed(turns(row)) if role == "user"), "")


_Word = tuple[Source, str | None, bool]
"""Source, answer (None if it was not stored), and whether it was judged wrong."""


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
    for said in standing(feedback):
        corrected: Source = "feedback" if said.judge else "user"
        if said.answer is not None:
            yield corrected, said.answer, False
        elif said.verdict == "right":
            yield "confirmed" if said.judge else "user", row.answer_text, False
        if said.verdict == "wrong":
            yield corrected, row.answer_text, True
    last = {audit.judged_by: audit for audit in audits}
    person = last.get("person") if audits and audits[-1].judged_by == "person" else None
    if person and person.other is not None:
        yield "audit", person.other, False
    large = last.get("large")
    if large and large.wrong:
        yield "suspect", large.other, False
    elif row.stage == "large" and not is_outside(row):
        yield "large", row.answer_text, False


def _why_not(row: LedgerRow, words: Sequence[_Word], audits: Sequence[AuditRow]) -> str:
    """Return why a response gives no evidence; empty if it does, or if nobody judged it."""
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
