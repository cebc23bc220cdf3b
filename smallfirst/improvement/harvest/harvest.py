"""The harvest stage: turn served answers that somebody judged, or the large model gave, into training rows.

They are no random sample of the traffic, so they train and never measure.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset, Example, Message, fold_text
from smallfirst.data.redaction import RedactedText, redact
from smallfirst.data.redaction import format_counts as redacted_in_words
from smallfirst.data.row_formats import detect_layout, parse_row, to_row
from smallfirst.errors import ConfigError
from smallfirst.improvement.harvest.evidence import (
    Evidence,
    Resolution,
    Source,
    collect,
    open_ledger,
    parse_evidence,
    resolve,
)
from smallfirst.improvement.rows_file import RowsRecord, refuse_to_overwrite, write_rows
from smallfirst.project.project import Project
from smallfirst.project.rows import find_held_out_leaks
from smallfirst.records import Record
from smallfirst.tasks.task import Task

SHOWN = 200
"""Characters shown of an answer that the task cannot parse."""
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


class HarvestResult(RowsRecord):
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


def harvest(
    project: Project,
    *,
    out: Path = Path("harvested.jsonl"),
    since: datetime | None = None,
    people_only: bool = False,
) -> HarvestResult:
    """Write the training rows that the ledger gives for the project's task to `out`; return the record.

    Use only answers given or judged at or after `since`; with `people_only` only what judges said. A text of the
    training rows is left out, unless it came from `out` itself. Raise ConfigError if there is no ledger, or if `out` is
    read by the task, was edited by somebody, or holds an earlier harvest from further back.
    """
    earlier = HarvestResult.load(record_path(out)) if record_path(out).exists() else None
    refuse_to_overwrite(project, out, earlier)
    if out.exists() and earlier and since and (not earlier.since or datetime.fromisoformat(earlier.since) < since):
        raise ConfigError(
            f"{out} holds a harvest from further back, and would lose rows",
            hint="leave out --since, or name another file: --out",
        )
    with closing(open_ledger()) as opened:
        heard = collect(opened, project.file.name, since)
    votes, unread = parse_evidence(
        [one for one in heard.voices if one.against or one.by_judge or not people_only], project.task
    )
    builder = _RowBuilder(project, out, heard.refused)
    for settled in resolve(votes, project.task):
        builder.take(settled)
    outcomes = {v.response_id: "no_answer" for v in unread} | builder.outcomes
    rows = builder.not_held_out(outcomes)
    sources, reasons = Counter(row.vote.source for row in rows), Counter(outcomes.values())
    result = HarvestResult(
        task=project.file.name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        since=since.isoformat() if since else None,
        out=out,
        n_rows=len(rows),
        by_source={source: sources[source] for source in SOURCES if sources[source]},
        by_answer=dict(Counter(row.example.answer for row in rows).most_common()) if project.task.closed else {},
        refused={reason: reasons[reason] for reason in REASONS if reasons[reason]},
        redacted=dict(sum((Counter(row.redacted) for row in rows), Counter[str]())),
        disputed=tuple(builder.disputed),
        unread=tuple(UnparsedAnswer(response_id=v.response_id, said=redact(v.said).text[:SHOWN]) for v in unread),
    )
    beside = [{"source": row.vote.source, "response_id": row.vote.response_id} for row in rows]
    lines = [row.values | more | row.values for row, more in zip(rows, beside, strict=True)]  # a row's own values win
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return write_rows(out, content, result, record_path(out))


def record_path(out: Path) -> Path:
    """Return the path of the record, beside the rows."""
    return out.with_suffix(".harvest.json")


class _Row(NamedTuple):
    vote: Evidence
    example: Example
    values: dict[str, Any]
    """The row as it is written, under the task's names of columns."""
    redacted: dict[str, int]
    """Items by kind."""


class _RowBuilder:
    def __init__(self, project: Project, out: Path, refused: dict[str, str]) -> None:
        self.project, self.rows, self.outcomes = project, list[_Row](), dict(refused)
        self.disputed: list[DisputedText] = []
        own = [e for e in project.rows.train.examples if not e.path or Path(e.path).resolve() != out.resolve()]
        self._known = {fold_text(redact(e.asked).text): e.answer for e in own}
        self._shape = project.rows.train.examples[0].shape

    def take(self, settled: Resolution) -> None:
        best, task = settled.votes[0], self.project.task
        reason, known = settled.reason, self._known.get(fold_text(best.text))
        if not reason and known is not None:
            reason = "contradicts" if best.by_judge and best.answer != known else "known"
        if not reason:
            row = self._row(best)
            reason = "" if row else "unwritable"
            self.rows += [row] if row else []
        if reason in ("disputed", "users_only", "contradicts"):
            answers = tuple(dict.fromkeys(_clean(vote.answer, task).text for vote in settled.votes))
            self.disputed.append(DisputedText(text=best.text, answers=answers, response_ids=settled.response_ids))
        for id in settled.response_ids:
            self.outcomes[id] = reason or ("row" if id == best.response_id else "repeated")

    def not_held_out(self, outcomes: dict[str, str]) -> list[_Row]:
        """Return the rows whose text is not held out; note the reason for the others in `outcomes`."""
        rows = self.rows
        while rows:
            # Which words count in a comparison depends on all rows, so what is left is looked at once more.
            new = Dataset(name="harvested", examples=tuple(row.example for row in rows))
            seen = find_held_out_leaks(self.project.rows, new).keys
            if not seen:
                break
            outcomes |= {row.vote.response_id: "held_out" for row in rows if row.example.key in seen}
            rows = [row for row in rows if row.example.key not in seen]
        return rows

    def _row(self, vote: Evidence) -> _Row | None:
        answer, columns = _clean(vote.answer, self.project.task), self.project.file.data.columns
        parsed = self.project.task.parse(answer.text)
        if parsed is None:
            return None
        asked = (Message(role="user", content=vote.text),)
        example = Example(messages=asked, answer=parsed, shape=self._shape)
        values = {getattr(columns, field): value for field, value in to_row(example).items()}
        found = detect_layout(values, columns)
        if isinstance(found, str) or parse_row(values, found, path="", line=0, labels=None)[0] is None:
            return None
        return _Row(vote, example, values, dict(Counter(vote.redacted) + Counter(answer.counts)))


def _clean(answer: str, task: Task) -> RedactedText:
    """Redact an answer; one of a closed set stays."""
    return RedactedText(answer, {}) if task.closed else redact(answer)


def _shown(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 60 else f"{plain[:59]}…"
