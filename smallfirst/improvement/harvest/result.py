"""The record of a harvest: rows by source, omitted responses by reason, and texts that a person should decide."""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.redaction import format_counts as redacted_in_words
from smallfirst.improvement.harvest.evidence import Source
from smallfirst.records import Record

REASONS = {
    "no_text": "whose texts were not stored",
    "conversation": "of several turns, while the task is asked in one message",
    "outside": "that are no request of the task",
    "agreed": "on which the large model agreed: nothing new",
    "told_wrong": "judged wrong, without a right answer",
    "no_answer": "with an answer that the task cannot parse",
    "disputed": "with conflicting answers: for a judge",
    "users_only": "on which only users spoke, who may not judge: for a judge",
    "repeated": "to a text that another response answered",
    "known": "to a text of the training rows",
    "contradicts": "to a training text, where a judge now gives another answer: for a judge",
    "held_out": "to a text that measures, certifies or chooses, or nearly one",
    "unwritable": "that are no valid row after redaction",
}
"""Why a response gives no row, as the end of «12 responses …»."""
SOURCES: dict[Source, str] = {
    "feedback": "corrected by feedback",
    "confirmed": "called right by feedback",
    "audit": "answered by a person in an audit",
    "large": "answered by the large model",
    "suspect": "where the large model differed from the answer that was kept",
}
STORE_BODIES = "smallfirst serve task.yaml --store-bodies   keeps the texts of requests to come"


class DisputedText(Record):
    """A text without an answer that is trusted enough, for a judge to decide; redacted."""

    text: str
    answers: tuple[str, ...]
    """The answers, the most trusted first."""
    response_ids: tuple[str, ...]


class UnparsedAnswer(Record):
    """An answer that the task cannot parse; redacted."""

    response_id: str
    said: str


class HarvestResult(Record):
    """The record of one harvest."""

    task: str
    made_at: str
    since: str | None
    """Only answers given or judged from then on, ISO 8601; None is from the beginning."""
    out: Path
    n_rows: int
    by_source: dict[Source, int]
    """Rows by where their answer comes from, most trusted first."""
    by_answer: dict[str, int] = {}
    """Rows by answer, most frequent first; empty for open answers."""
    refused: dict[str, int]
    """Responses that somebody judged, or the large model answered, and that gave no row, by reason."""
    redacted: dict[str, int] = {}
    disputed: tuple[DisputedText, ...] = ()
    unread: tuple[UnparsedAnswer, ...] = ()
    written: str = ""

    @property
    def n_heard(self) -> int:
        return self.n_rows + sum(self.refused.values())

    @property
    def in_words(self) -> list[str]:
        lines = [f"{self.n_rows:,} rows for {self.task} in {self.out}, from {self.n_heard:,} responses"]
        lines += [f"  {n:>6,}  {SOURCES[source]}" for source, n in self.by_source.items() if n]
        lines += [f"left out: {n:,} {REASONS[reason]}" for reason, n in self.refused.items()]
        lines.append(f"redacted: {redacted_in_words(self.redacted)}")
        lines += [f"for a person: {_shown(d.text)}  ({' | '.join(map(_shown, d.answers))})" for d in self.disputed[:5]]
        lines += [f"no answer of the task: {u.response_id}: {_shown(u.said)}" for u in self.unread[:5]]
        if self.refused.get("no_text"):
            lines.append(f"texts are kept only if asked for: {STORE_BODIES}")
        return lines


def _shown(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 60 else f"{plain[:59]}…"
