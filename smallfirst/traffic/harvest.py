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
from smallfirst.models.stages import Answerer, answerer
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import find_held_out_leaks
from smallfirst.routing.router import seems_foreign

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
    "known": "to a known text, or to one that a more trusted or a later response answers",
    "disputed": "that somebody calls wrong, without a right answer of a judge",
    "contradicts": "to a training text, where a judge now gives another answer: correct that row",
    "held_out": "to a text that measures, certifies or chooses, or nearly one",
}
"""Why a response gives no row, as the end of «12 responses …»."""


class HarvestResult(RowsRecord):
    """The record of one harvest."""

    task: str
    made_at: str
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


def harvest(project: Project, out: Path = Path("harvested.jsonl"), *, people_only: bool = False) -> HarvestResult:
    """Write the training rows that the ledger gives for the project's task to `out`; return the record.

    With `people_only` use only what judges said. To each text the latest answer of the most trusted source counts,
    unless a judge has called it wrong. A text of the training rows is left out, unless it came from `out` itself. Raise
    ConfigError if there is no ledger, or if `out` is read by the task or was edited by somebody.
    """
    earlier = HarvestResult.load(record_path(out)) if record_path(out).exists() else None
    refuse_to_overwrite(project, out, earlier)
    votes: list[_Vote] = []
    reasons: dict[str, str] = {}
    wrong: set[tuple[str, str | None]] = set()
    with closing(open_ledger()) as ledger:
        for row, audit, marks in _judged(ledger, project.file.name):
            text = redact(last_user_message(row)).text
            if any(said.judge and said.verdict == "wrong" for said in marks):
                wrong.add((fold_text(text), project.task.parse(row.answer_text or "")))
            found = _said(row, audit, marks)
            if found is None:
                known = "known" if audit and not marks else "disputed"
                reasons[row.id] = "unfit" if seems_foreign(row.steps) else known
            elif not text.strip() or not found[1]:
                reasons[row.id] = "no_text"
            elif (answer := project.task.parse(found[1])) is None or sum(r != "system" for r, _ in _turns(row)) > 1:
                reasons[row.id] = "unfit"
            elif found[0] != "large" or not people_only:
                votes.append(_Vote(row.id, row.at, text, found[0], answer))
    rows = _without_held_out(project, list(_rows(project, out, votes, wrong, reasons)), reasons)
    sources, counts = Counter(row.vote.source for row in rows), Counter(reasons.values())
    result = HarvestResult(
        task=project.file.name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
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


_Judged = tuple[LedgerRow, AuditRow | None, list[FeedbackRow]]
"""A response, its audit, and the standing feedback."""


def _judged(ledger: Ledger, task: str) -> Iterator[_Judged]:
    """Yield the responses of a task that were judged or come from the large model."""
    audits = {audit.id: audit for audit in ledger.entries(AuditRow, task=task)}
    feedback: dict[str, list[FeedbackRow]] = defaultdict(list)
    for said in standing(ledger.entries(FeedbackRow)):
        feedback[said.id].append(said)
    for row in ledger.entries(LedgerRow, task=task):
        audit, marks = audits.get(row.id), feedback.get(row.id, [])
        if row.status == 200 and (audit or marks or answerer(row.stage) is Answerer.LARGE):
            yield row, audit, marks


def _said(row: LedgerRow, audit: AuditRow | None, marks: Sequence[FeedbackRow]) -> tuple[Source, str | None] | None:
    """Return the answer to learn and whose it is: a judge's, that of a person's audit, or the large model's."""
    judge = next((said for said in marks if said.judge), None)
    if judge is not None and judge.answer is not None:
        return "feedback", judge.answer
    if judge is not None:
        return ("confirmed", row.answer_text) if judge.verdict == "right" else None
    if audit is not None and audit.other is not None and audit.judged_by == "person":
        return "audit", audit.other
    if audit is not None and audit.wrong:
        return "large", audit.other
    doubted = any(said.verdict == "wrong" for said in marks)
    by_large = answerer(row.stage) is Answerer.LARGE
    return ("large", row.answer_text) if by_large and not doubted and not seems_foreign(row.steps) else None


def _turns(row: LedgerRow) -> list[tuple[str, str]]:
    """Return role and content of each stored message; empty if none was stored."""
    return [(role, content) for role, content in json.loads(row.request_text or "[]")]


class _HarvestedRow(NamedTuple):
    vote: _Vote
    example: Example
    values: dict[str, Any]
    """The row as it is written, under the task's names of columns."""


def _rows(
    project: Project, out: Path, votes: Sequence[_Vote], wrong: set[tuple[str, str | None]], reasons: dict[str, str]
) -> Iterator[_HarvestedRow]:
    """Yield a row for each new text; note in `reasons` why other votes give none."""
    own = [e for e in project.rows.train.examples if not e.path or Path(e.path).resolve() != out.resolve()]
    known = {fold_text(redact(e.asked).text): e.answer for e in own}
    rank, answered = list(SOURCES).index, set[str]()
    for vote in sorted(votes, key=lambda vote: (rank(vote.source), -vote.at.timestamp())):
        text = fold_text(vote.text)
        if (text, vote.answer) in wrong:
            reasons[vote.id] = "disputed"
        elif text in answered or text in known:
            differs = text not in answered and vote.source != "large" and vote.answer != known[text]
            reasons[vote.id] = "contradicts" if differs else "known"
        elif row := _row(project, vote):
            answered.add(text)
            yield row
        else:
            reasons[vote.id] = "unfit"


def _row(project: Project, vote: _Vote) -> _HarvestedRow | None:
    columns, task = project.file.data.columns, project.task
    parsed = task.parse(vote.answer if task.closed else redact(vote.answer).text)
    if parsed is None:
        return None
    asked = (Message(role="user", content=vote.text),)
    first = project.rows.train.examples[0]
    example = Example(messages=asked, answer=parsed, shape=first.shape, tools=first.tools)
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
