"""The harvest stage: turn served answers that somebody judged, or the large model gave, into training rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset, Example, Message, fold_text
from smallfirst.data.redaction import RedactedText, redact, redact_json
from smallfirst.data.row_formats import Columns, detect_layout, parse_row, to_row
from smallfirst.errors import ConfigError
from smallfirst.files import write_atomically
from smallfirst.improvement.harvest.evidence import BY_JUDGES, TRUST, collect, open_ledger
from smallfirst.improvement.harvest.resolve import ParsedEvidence, Resolution, parse_evidence, resolve
from smallfirst.improvement.harvest.result import REASONS, SOURCES, DisputedText, HarvestResult, UnparsedAnswer
from smallfirst.project.project import Project
from smallfirst.project.rows import find_held_out_leaks
from smallfirst.records import fingerprint
from smallfirst.tasks.task import Task

SHOWN = 200
"""Characters shown of an answer that the task cannot parse."""


def harvest(
    project: Project,
    *,
    out: Path = Path("harvested.jsonl"),
    ledger: Path | str | None = None,
    since: datetime | None = None,
    people_only: bool = False,
) -> HarvestResult:
    """Write the training rows that the ledger gives for the project's task to `out`; return the record.

    Use only answers given or judged at or after `since`; with `people_only` only what judges said. A text of the
    training rows is left out, unless it came from `out` itself. Raise ConfigError if there is no ledger, or if `out` is
    read by the task, was edited by somebody, or holds an earlier harvest from further back.
    """
    _refuse_to_overwrite(project, out, since)
    with closing(open_ledger(ledger)) as opened:
        heard = collect(opened, project.file.name, since)
    if people_only:
        heard = heard._replace(voices=[one for one in heard.voices if one.against or TRUST[one.source] <= BY_JUDGES])
    builder = _RowBuilder(project, out)
    builder.outcomes.update(heard.refused)
    votes, unread = parse_evidence(heard.voices, project.task)
    for settled in resolve(votes, project.task):
        builder.take(settled)
    builder.outcomes |= {v.response_id: "no_answer" for v in unread if v.response_id not in builder.outcomes}
    rows = builder.not_held_out()
    result = _result(project, rows, builder)
    said = tuple(UnparsedAnswer(response_id=v.response_id, said=redact(v.said[:SHOWN]).text) for v in unread)
    told = {"out": out, "since": since.isoformat() if since else None, "unread": said}
    return _written(result.model_copy(update=told), rows, project.file.data.columns)


def record_path(out: Path) -> Path:
    """Return the path of the record, beside the rows."""
    return out.with_suffix(".harvest.json")


class _Row(NamedTuple):
    vote: ParsedEvidence
    example: Example
    counts: dict[str, int]
    """Redacted items by kind."""


class _RowBuilder:
    def __init__(self, project: Project, out: Path) -> None:
        self.project, self.rows = project, list[_Row]()
        self.outcomes: dict[str, str] = {}
        self.disputed: list[DisputedText] = []
        own = [e for e in project.rows.train.examples if not e.path or Path(e.path).resolve() != out.resolve()]
        self._known = {fold_text(redact(e.asked).text): e.answer for e in own}
        self._shape = project.rows.train.examples[0].shape

    def take(self, settled: Resolution) -> None:
        best = settled.votes[0]
        reason = settled.reason or self._known_already(best)
        if not reason:
            row = self._row(best)
            reason = "" if row else "unwritable"
            self.rows += [row] if row else []
        if reason in ("disputed", "users_only", "contradicts"):
            self.disputed.append(_for_a_person(settled, self.project.task))
        for id in settled.response_ids:
            self.outcomes[id] = reason or ("row" if id == best.voice.response_id else "repeated")

    def not_held_out(self) -> list[_Row]:
        """Return the rows whose text is not held out; note the reason for the others."""
        while True:
            # Which words count in a comparison depends on all rows, so what is left is looked at once more.
            new = Dataset(name="harvested", examples=tuple(row.example for row in self.rows))
            seen = find_held_out_leaks(self.project.rows, new).keys if self.rows else frozenset[str]()
            if not seen:
                return self.rows
            self.outcomes |= {r.vote.voice.response_id: "held_out" for r in self.rows if r.example.key in seen}
            self.rows = [row for row in self.rows if row.example.key not in seen]

    def _known_already(self, vote: ParsedEvidence) -> str:
        answer = self._known.get(fold_text(vote.text))
        if answer is None:
            return ""
        return "contradicts" if vote.by_judge and answer != vote.answer else "known"

    def _row(self, vote: ParsedEvidence) -> _Row | None:
        answer = _clean(vote.answer, self.project.task)
        parsed = self.project.task.parse(answer.text)
        if parsed is None:
            return None
        asked = (Message(role="user", content=vote.text),)
        example = Example(messages=asked, answer=parsed, shape=self._shape)
        values, columns = _named(example, self.project.file.data.columns), self.project.file.data.columns
        found = detect_layout(values, columns)
        if isinstance(found, str) or parse_row(values, found, path="", line=0, labels=None)[0] is None:
            return None
        counts = Counter(redact(vote.voice.text).counts) + Counter(answer.counts)
        return _Row(vote, example, dict(counts))


def _clean(answer: str, task: Task) -> RedactedText:
    """Redact an answer; one of a closed set stays."""
    if task.closed:
        return RedactedText(answer, {})
    try:
        return (
            redact_json(answer) if task.answer_schema() is not None or answer.startswith(("{", "[")) else redact(answer)
        )
    except ValueError:
        return redact(answer)


def _for_a_person(settled: Resolution, task: Task) -> DisputedText:
    answers = tuple(dict.fromkeys(_clean(vote.answer, task).text for vote in settled.votes))
    return DisputedText(text=settled.votes[0].text, answers=answers, response_ids=settled.response_ids)


def _result(project: Project, rows: Sequence[_Row], builder: _RowBuilder) -> HarvestResult:
    sources = Counter(row.vote.voice.source for row in rows)
    reasons = Counter(outcome for outcome in builder.outcomes.values() if outcome != "row")
    answers = Counter(row.example.answer for row in rows) if project.task.closed else Counter[str]()
    redacted = sum((Counter(row.counts) for row in rows), Counter[str]())
    return HarvestResult(
        task=project.file.name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        since=None,
        out=Path(),
        n_rows=len(rows),
        by_source={source: sources[source] for source in SOURCES if sources[source]},
        by_answer=dict(answers.most_common()),
        refused={reason: reasons[reason] for reason in REASONS if reasons[reason]},
        redacted=dict(redacted),
        disputed=tuple(builder.disputed),
    )


def _written(result: HarvestResult, rows: Sequence[_Row], columns: Columns) -> HarvestResult:
    lines = [_line(row, columns) for row in rows]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(result.out, content.encode())
    result = result.model_copy(update={"written": fingerprint(content)})
    result.save(record_path(result.out))
    return result


def _line(row: _Row, columns: Columns) -> dict[str, Any]:
    values = _named(row.example, columns)
    voice = row.vote.voice
    return values | {
        key: value for key, value in (("source", voice.source), ("response_id", voice.response_id)) if key not in values
    }


def _named(example: Example, columns: Columns) -> dict[str, Any]:
    return {getattr(columns, field): value for field, value in to_row(example).items()}


def _refuse_to_overwrite(project: Project, out: Path, since: datetime | None) -> None:
    data = project.file.data
    read_here = [data.train, data.validation, data.test, data.open_ended, data.relabels]
    if out.resolve() in {project.file.path(path).resolve() for path in read_here if path is not None}:
        raise ConfigError(f"{out} is an input of the task, so it cannot be the output", hint="--out harvested.jsonl")
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out}: harvested rows are JSON Lines", hint=f"--out {out.with_suffix('.jsonl')}")
    if not out.exists():
        return
    earlier = HarvestResult.load(record_path(out)) if record_path(out).exists() else None
    if earlier is None or earlier.written != fingerprint(out.read_text(encoding="utf-8")):
        raise ConfigError(
            f"{out} exists and was changed since an earlier harvest wrote it",
            hint="name another file, or move this one away",
        )
    if since is not None and (earlier.since is None or datetime.fromisoformat(earlier.since) < since):
        raise ConfigError(
            f"{out} holds a harvest from further back, and would lose rows",
            hint="leave out --since, or name another file: --out",
        )
