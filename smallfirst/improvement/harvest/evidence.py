"""Collect from the ledger who gave or judged each answer of a task.

Of several judgements of an answer the last judge's counts. All audits and feedback are read,
whatever their age, since a judgement may come long after the answer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from smallfirst.data.dataset import fold_text
from smallfirst.data.redaction import redact
from smallfirst.errors import ConfigError
from smallfirst.evaluation.self_agreement import answer_matcher
from smallfirst.paths import ledger_place
from smallfirst.serving.ledger.ledger import Ledger, open_existing
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, LedgerRow, standing
from smallfirst.tasks.task import Task

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
    """The last user message, redacted."""
    said: str
    source: Source
    against: bool = False
    """True if it calls the answer wrong."""
    redacted: Mapping[str, int] = {}
    """Items taken out of the text, by kind."""
    answer: str = ""
    """The answer in canonical form, once the task has parsed it."""

    @property
    def trust(self) -> int:
        return TRUST[self.source]

    @property
    def by_judge(self) -> bool:
        return self.trust <= BY_JUDGES

    @property
    def by_user(self) -> bool:
        return self.source == "user"


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
"""Source, answer (None if it was not stored), and whether it calls that wrong."""


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
    (audit,) = audits or (None,)
    by_person = audit is not None and audit.judged_by == "person"
    if audit is not None and by_person and audit.other is not None:
        yield "audit", audit.other, False
    if audit is not None and not by_person and audit.wrong:
        yield "suspect", audit.other, False
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
    text, redacted = redact(last_user_message(row))
    for source, said, against in words:
        if said and text.strip():
            yield Evidence(row.id, row.at, text, said, source, against, redacted)


class Resolution(NamedTuple):
    """The outcome of all evidence on one text."""

    votes: tuple[Evidence, ...]
    """Evidence that gives an answer, the most trusted and then the latest first."""
    reason: str
    """Why there is no row; empty if the first of `votes` becomes one."""

    @property
    def response_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(vote.response_id for vote in self.votes))


def parse_evidence(voices: Sequence[Evidence], task: Task) -> tuple[list[Evidence], list[Evidence]]:
    """Parse the evidence; return what the task can parse, and what it cannot."""
    votes, unread = [], []
    for voice in voices:
        answer = task.parse(voice.said)
        if answer is not None:
            votes.append(voice._replace(answer=answer))
        elif not voice.against:
            unread.append(voice)
    return votes, unread


def resolve(votes: Sequence[Evidence], task: Task) -> Iterator[Resolution]:
    """Yield the resolution of each text that has an answer, in the order in which the texts were first asked."""
    by_text: dict[str, list[Evidence]] = defaultdict(list)
    for vote in votes:
        by_text[fold_text(vote.text)].append(vote)
    for group in by_text.values():
        if any(not vote.against for vote in group):
            yield _settled(group, task)


def _settled(group: Sequence[Evidence], task: Task) -> Resolution:
    wrong = {vote.answer for vote in group if vote.against and not vote.by_user}
    given = [vote for vote in group if not vote.against]
    given.sort(key=lambda vote: (vote.trust, -vote.at.timestamp()))
    if any(vote.by_judge and vote.answer in wrong for vote in given):
        return Resolution(tuple(given), "disputed")
    left = [vote for vote in given if vote.answer not in wrong]
    if not left:
        return Resolution(tuple(given), "told_wrong")
    best, same = left[0], answer_matcher(task)
    votes = tuple(left + [v for v in given if v not in left])
    if best.by_user:
        return Resolution(votes, "users_only")
    agreed = all(
        same(best.answer, v.answer) for v in left if v.trust == best.trust or (v.by_user and not best.by_judge)
    )
    doubted = not best.by_judge and any(v.against and v.by_user and v.answer == best.answer for v in group)
    return Resolution(votes, "" if agreed and not doubted else "disputed")
