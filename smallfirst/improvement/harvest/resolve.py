"""Resolve the evidence on each text to one answer: the most trusted source wins, equally trusted ones must agree.

What users say, who may not judge, gives no answer: it can only put another source's in doubt, for a judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from smallfirst.data.dataset import fold_text
from smallfirst.data.redaction import redact
from smallfirst.evaluation.self_agreement import answer_matcher
from smallfirst.improvement.harvest.evidence import BY_JUDGES, TRUST, Evidence
from smallfirst.tasks.task import Task


class ParsedEvidence(NamedTuple):
    """Evidence with its answer parsed by the task."""

    voice: Evidence
    text: str
    """The text, redacted."""
    answer: str
    """In canonical form."""

    @property
    def trust(self) -> int:
        return TRUST[self.voice.source]

    @property
    def by_judge(self) -> bool:
        return self.trust <= BY_JUDGES

    @property
    def by_user(self) -> bool:
        return self.voice.source == "user"


class Resolution(NamedTuple):
    """The outcome of all evidence on one text."""

    votes: tuple[ParsedEvidence, ...]
    """Evidence that gives an answer, the most trusted and then the latest first."""
    reason: str
    """Why there is no row; empty if the first of `votes` becomes one."""

    @property
    def response_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(vote.voice.response_id for vote in self.votes))


def parse_evidence(voices: Sequence[Evidence], task: Task) -> tuple[list[ParsedEvidence], list[Evidence]]:
    """Parse the evidence; return what the task can parse, and what it cannot."""
    votes, unread = [], []
    for voice in voices:
        answer = task.parse(voice.said)
        if answer is not None:
            votes.append(ParsedEvidence(voice, redact(voice.text).text, answer))
        elif not voice.against:
            unread.append(voice)
    return votes, unread


def resolve(votes: Sequence[ParsedEvidence], task: Task) -> Iterator[Resolution]:
    """Yield the resolution of each text that has an answer, in the order in which the texts were first asked."""
    by_text: dict[str, list[ParsedEvidence]] = defaultdict(list)
    for vote in votes:
        by_text[fold_text(vote.text)].append(vote)
    for group in by_text.values():
        if any(not vote.voice.against for vote in group):
            yield _settled(group, task)


def _settled(group: Sequence[ParsedEvidence], task: Task) -> Resolution:
    wrong = {vote.answer for vote in group if vote.voice.against and not vote.by_user}
    given = [vote for vote in group if not vote.voice.against]
    given.sort(key=lambda vote: (vote.trust, -vote.voice.at.timestamp()))
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
    doubted = not best.by_judge and any(v.voice.against and v.by_user and v.answer == best.answer for v in group)
    return Resolution(votes, "" if agreed and not doubted else "disputed")
