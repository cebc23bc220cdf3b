"""One answer a text: the most trusted voice wins, and voices that are as trusted must agree.

Texts are the same if they are when case, spacing and punctuation are put aside and what is personal is out. An answer
that a person calls wrong is learned from nobody; where people contradict each other, nothing is learned, and a person
decides. The price: of two answers by the large model to one text that differ in more than wording, neither is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from smallfirst.data.dataset import fold_text
from smallfirst.data.redaction import redact
from smallfirst.evaluation.self_consistency import answer_matcher
from smallfirst.improvement.harvest.evidence import BY_PEOPLE, TRUST, Evidence
from smallfirst.tasks.task import Task


class ParsedEvidence(NamedTuple):
    """A voice as the task reads it."""

    voice: Evidence
    text: str
    """Without what is personal."""
    answer: str
    """Canonical."""

    @property
    def trust(self) -> int:
        """The lower, the more."""
        return TRUST[self.voice.source]

    @property
    def by_person(self) -> bool:
        """True if a person stands for it."""
        return self.trust <= BY_PEOPLE


class Resolution(NamedTuple):
    """What came of all votes on one text."""

    votes: tuple[ParsedEvidence, ...]
    """Those that give an answer, in the order of trust; of equal ones the latest first."""
    reason: str
    """Why there is no row; empty if the first of `votes` makes one."""

    @property
    def response_ids(self) -> tuple[str, ...]:
        """Responses that gave an answer, in the order of `votes`."""
        return tuple(dict.fromkeys(vote.voice.response_id for vote in self.votes))


def parse_evidence(voices: Sequence[Evidence], task: Task) -> tuple[list[ParsedEvidence], list[Evidence]]:
    """The voices as votes, and those for an answer that the task does not know."""
    votes, unread = [], []
    for voice in voices:
        answer = task.parse(voice.said)
        if answer is not None:
            votes.append(ParsedEvidence(voice, redact(voice.text).text, answer))
        elif not voice.against:
            unread.append(voice)
    return votes, unread


def resolve(votes: Sequence[ParsedEvidence], task: Task) -> Iterator[Resolution]:
    """What came of each text that somebody gave an answer to, in the order in which they were first asked."""
    by_text: dict[str, list[ParsedEvidence]] = defaultdict(list)
    for vote in votes:
        by_text[fold_text(vote.text)].append(vote)
    for group in by_text.values():
        if any(not vote.voice.against for vote in group):
            yield _settled(group, task)


def _settled(group: Sequence[ParsedEvidence], task: Task) -> Resolution:
    wrong = {vote.answer for vote in group if vote.voice.against}
    given = [vote for vote in group if not vote.voice.against]
    given.sort(key=lambda vote: (vote.trust, -vote.voice.at.timestamp()))
    if any(vote.by_person and vote.answer in wrong for vote in given):
        return Resolution(tuple(given), "disputed")
    left = [vote for vote in given if vote.answer not in wrong]
    if not left:
        return Resolution(tuple(given), "told_wrong")
    best, same = left[0], answer_matcher(task)
    agreed = all(same(best.answer, vote.answer) for vote in left if vote.trust == best.trust)
    return Resolution(tuple(left + [v for v in given if v not in left]), "" if agreed else "disputed")
