"""The harvest stage: turn served answers that somebody judged, or the large model gave, into training rows.

They are no random sample of the traffic, so they train and never measure.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from smallfirst.base.errors import ConfigError
from smallfirst.base.files import write_atomically
from smallfirst.base.paths import ledger_place
from smallfirst.base.records import Record, fingerprint
from smallfirst.data.dataset import Dataset, Example, Message, fold_text
from smallfirst.data.redaction import redact
from smallfirst.data.row_formats import detect_layout, parse_row, to_row
from smallfirst.ledger.ledger import Ledger, open_existing
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow, standing
from smallfirst.measuring.teacher_agreement import answer_matcher
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import find_held_out_leaks
from smallfirst.tasks.task import Task

# Rows that a step writes anew: never over an input, nor over what somebody has changed


class RowsRecord(Record):
    """A record of how rows were made, which stands beside them."""

    written: str = ""
    """Fingerprint of the file of rows."""


R = TypeVar("R", bound=RowsRecord)


def refuse_to_overwrite(
    project: Project, out: Path, earlier: RowsRecord | None, *, inputs: Iterable[Path | None] = ()
) -> None:
    """Raise ConfigError if `out` is an input of the task or among `inputs`, no JSON Lines, or not as `earlier` says."""
    data = project.file.data
    own = [data.train, data.validation, data.test, data.open_ended, data.relabels]
    read = [*(project.file.path(path) for path in own if path), *filter(None, inputs)]
    if out.resolve() in {path.resolve() for path in read}:
        raise ConfigError(f"{out} is an input, so it cannot be the output", hint="name another file: --out FILE.jsonl")
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out}: rows are written as JSON Lines", hint=f"--out {out.with_suffix('.jsonl')}")
    if out.exists() and (earlier is None or earlier.written != fingerprint(out.read_text(encoding="utf-8"))):
        raise ConfigError(
            f"{out} exists and was changed since an earlier run wrote it",
            hint="name another file, or move this one away",
        )


def write_rows(out: Path, content: str, record: R, record_path: Path) -> R:
    """Write rows as JSON Lines and then their record; return that, with the fingerprint of the rows."""
    write_atomically(out, content.encode())
    record = record.model_copy(update={"written": fingerprint(content)})
    record.save(record_path)
    return record


# The harvest

Source = Literal["feedback", "confirmed", "audit", "large"]
SOURCES: dict[Source, str] = {
    "feedback": "corrected by a judge",
    "confirmed": "called right by a judge",
    "audit": "answered by a person in an audit",
    "large": "answered by the large model",
}
"""Where an answer comes from, the most trusted first. A user who may not judge gives no answer."""
REASONS = {
    "no_text": "whose texts were not stored",
    "unfit": "that are no request of the task in one message, or have no valid answer",
    "known": "that say nothing new: to a known text, repeated, or confirmed by the large model",
    "disputed": "with conflicting answers, doubted by a user, or judged wrong without a right one: for a judge",
    "contradicts": "to a training text, where a judge now gives another answer: correct that row",
    "held_out": "to a text that measures, certifies or chooses, or nearly one",
}
"""Why a response gives no row, as the end of «12 responses …»."""


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
    refused: dict[str, int]
    """Responses that somebody judged, or the large model answered, and that gave no row, by reason."""

    @property
    def in_words(self) -> list[str]:
        n_heard = self.n_rows + sum(self.refused.values())
        lines = [f"{self.n_rows:,} rows for {self.task} in {self.out}, from {n_heard:,} responses"]
        lines += [f"  {n:>6,}  {SOURCES[source]}" for source, n in self.by_source.items()]
        lines += [f"left out: {n:,} {REASONS[reason]}" for reason, n in self.refused.items()]
        if self.refused.get("no_text"):
            lines.append("texts are kept only if asked for: smallfirst serve task.yaml --store-bodies")
        return lines


def open_ledger(place: Path | str | None = None) -> Ledger:
    """Open the ledger at a path or URL, by default `paths.ledger_place`. Raise ConfigError if it does not exist."""
    if (found := open_existing(place)) is None:
        raise ConfigError(
            f"{place or ledger_place()}: no such ledger",
            hint="name it with --ledger, or serve some requests first: smallfirst serve task.yaml --store-bodies",
        )
    return found


def last_user_message(row: LedgerRow) -> str:
    """Return the last user message; empty if it was not stored."""
    return next((content for role, content in reversed(_turns(row)) if role == "user"), "")


def record_path(out: Path) -> Path:
    """Return the path of the record, beside the rows."""
    return out.with_suffix(".harvest.json")


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
    with closing(open_ledger()) as ledger:
        heard = [_hear(*one, project.task) for one in _judged(ledger, project.file.name, since)]
    reasons = {one.id: one.reason for one in heard if one.reason}
    votes = [one for one in heard if not one.reason and (one.source != "large" or not people_only)]
    wrong = {(fold_text(one.text), answer) for one in heard for answer in one.wrong}
    rows = _without_held_out(project, list(_rows(project, out, votes, wrong, reasons)), reasons)
    sources, counts = Counter(row.vote.source for row in rows), Counter(reasons.values())
    result = HarvestResult(
        task=project.file.name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        since=since.isoformat() if since else None,
        out=out,
        n_rows=len(rows),
        by_source={source: sources[source] for source in SOURCES if sources[source]},
        refused={reason: counts[reason] for reason in REASONS if counts[reason]},
    )
    lines = [{"source": row.vote.source, "response_id": row.vote.id} | row.values for row in rows]  # own values win
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return write_rows(out, content, result, record_path(out))


class _Vote(NamedTuple):
    """What one response says about its text."""

    id: str
    at: datetime
    text: str
    """The last user message, redacted."""
    source: Source
    answer: str
    """In canonical form."""
    wrong: tuple[str, ...]
    """Answers that a judge called wrong."""
    doubted: bool
    """True if a user who may not judge called the answer wrong, or gave another one."""
    reason: str
    """Why it gives no answer, one of REASONS; empty if it does."""


_Judged = tuple[LedgerRow, AuditRow | None, list[FeedbackRow]]
"""A response, its audit, and the standing feedback."""


def _judged(ledger: Ledger, task: str, since: datetime | None) -> Iterator[_Judged]:
    """Yield the responses of a task that were judged or come from the large model, given or judged from `since` on."""
    audits = {audit.id: audit for audit in ledger.entries(AuditRow, task=task)}
    feedback: dict[str, list[FeedbackRow]] = defaultdict(list)
    for said in standing(ledger.entries(FeedbackRow)):
        feedback[said.id].append(said)
    for row in ledger.entries(LedgerRow, task=task):
        audit, marks = audits.get(row.id), feedback.get(row.id, [])
        last = max([row.at, *(mark.at for mark in marks), *([audit.at] if audit else [])])
        if row.status == 200 and (audit or marks or row.stage == "large") and (since is None or last >= since):
            yield row, audit, marks


def _hear(row: LedgerRow, audit: AuditRow | None, feedback: Sequence[FeedbackRow], task: Task) -> _Vote:
    """Return what a response says: the judge's word, else that of a person's audit, else the large model's."""
    judge = next((said for said in feedback if said.judge), None)
    user = next((said for said in feedback if not said.judge), None)
    by_person = audit is not None and audit.judged_by == "person"
    source: Source = "large"
    said: str | None = None
    reason = "unfit" if row.stage == "large" else "known" if audit else "disputed"
    if judge and (judge.answer is not None or judge.verdict == "right"):
        source = "confirmed" if judge.answer is None else "feedback"
        said, reason = judge.answer or row.answer_text, ""
    elif judge:
        reason = "disputed"
    elif audit and audit.other is not None and (by_person or audit.wrong):
        source, said, reason = "audit" if by_person else "large", audit.other, ""
    elif row.stage == "large" and not _is_outside(row):
        said, reason = row.answer_text, ""
    text = redact(last_user_message(row)).text
    answer = task.parse(said) if said else None
    if not reason:
        several = sum(role != "system" for role, _ in _turns(row)) > 1
        reason = "no_text" if not text.strip() or not said else "unfit" if several or answer is None else ""
    called_wrong = task.parse(row.answer_text or "") if judge and judge.verdict == "wrong" else None
    doubted = user is not None and (
        task.parse(user.answer) != answer
        if user.answer is not None
        else user.verdict == "wrong" and task.parse(row.answer_text or "") == answer
    )
    wrong = () if called_wrong is None else (called_wrong,)
    return _Vote(row.id, row.at, text, source, answer or "", wrong, doubted, reason)


def _is_outside(row: LedgerRow) -> bool:
    """Return True if the Router took the request for out of domain."""
    found = (step for step in row.steps if step.stage == "domain")
    return any(s.score is not None and s.threshold is not None and s.score > s.threshold for s in found)


def _turns(row: LedgerRow) -> list[tuple[str, str]]:
    """Return role and content of each stored message; empty if none was stored."""
    return [(role, content) for role, content in json.loads(row.request_text or "[]")]


class _HarvestedRow(NamedTuple):
    vote: _Vote
    example: Example
    values: dict[str, Any]
    """The row as it is written, under the task's names of columns."""


def _rows(
    project: Project, out: Path, votes: Sequence[_Vote], wrong: set[tuple[str, str]], reasons: dict[str, str]
) -> Iterator[_HarvestedRow]:
    """Yield a row for each text on which the most trusted answers agree; note in `reasons` why others give none."""
    own = [e for e in project.rows.train.examples if not e.path or Path(e.path).resolve() != out.resolve()]
    known = {fold_text(redact(e.asked).text): e.answer for e in own}
    by_text: dict[str, list[_Vote]] = defaultdict(list)
    for vote in votes:
        by_text[fold_text(vote.text)].append(vote)
    rank, same = list(SOURCES).index, answer_matcher(project.task)
    for text, group in by_text.items():
        left = [vote for vote in group if (text, vote.answer) not in wrong]
        left.sort(key=lambda vote: (rank(vote.source), -vote.at.timestamp()))
        reason, row = "disputed", None
        if left and all(vote.source == "large" for vote in group if vote not in left):  # else judges call it both
            best = left[0]
            agreed = all(same(best.answer, vote.answer) for vote in left if vote.source == best.source)
            doubted = best.source == "large" and any(vote.doubted for vote in left)
            if agreed and not doubted and text in known:
                reason = "known" if best.source == "large" or best.answer == known[text] else "contradicts"
            elif agreed and not doubted:
                row = _row(project, best)
                reason = "known" if row else "unfit"
        reasons |= {vote.id: reason for vote in group}
        if row:
            del reasons[row.vote.id]
            yield row


def _row(project: Project, vote: _Vote) -> _HarvestedRow | None:
    columns, task = project.file.data.columns, project.task
    parsed = task.parse(vote.answer if task.closed else redact(vote.answer).text)
    if parsed is None:
        return None
    asked = (Message(role="user", content=vote.text),)
    example = Example(messages=asked, answer=parsed, shape=project.rows.train.examples[0].shape)
    values = {getattr(columns, field): value for field, value in to_row(example).items()}
    found = detect_layout(values, columns)
    if isinstance(found, str) or parse_row(values, found, path="", line=0, labels=None)[0] is None:
        return None
    return _HarvestedRow(vote, example, values)


def _without_held_out(project: Project, rows: list[_HarvestedRow], reasons: dict[str, str]) -> list[_HarvestedRow]:
    """Return the rows whose text is not held out, nor nearly; note the others in `reasons`."""
    while rows:  # which words count in a comparison depends on all rows, so what is left is looked at once more
        new = Dataset(name="harvested", examples=tuple(row.example for row in rows))
        seen = find_held_out_leaks(project.rows, new).keys
        if not seen:
            break
        reasons |= {row.vote.id: "held_out" for row in rows if row.example.key in seen}
        rows = [row for row in rows if row.example.key not in seen]
    return rows
