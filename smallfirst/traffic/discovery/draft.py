"""Write a found task's folder: task.yaml, rows of recorded answers, and where it was found."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from smallfirst.base.errors import ConfigError
from smallfirst.base.files import write_atomically
from smallfirst.data.dataset import fold_text
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.schema import infer_schema
from smallfirst.traffic.discovery.outlook import Outlook
from smallfirst.traffic.discovery.tasks import MONTH, Case, RecurringTask, as_text
from smallfirst.traffic.task_source import TaskSource, Teacher
from smallfirst.traffic.wire import Json

ROWS, VALIDATION, TEST, SCHEMA = "rows.jsonl", "validation.jsonl", "test.jsonl", "schema.json"
MANY = 500
"""Different cases from which more of them measure: half learns then, and three fifths of fewer."""
CERTIFYING = 0.8
"""Share of the validation rows that certifies."""
_GOES_LIVE = {"classify": ("tuned", ["words", "encoder", "tuned"]), "extract": ("tagger", ["tagger"])}
"""The candidate that goes live and the ladder, by kind: the one that keeps most, since each costs next to nothing."""
_MOST_ABOUT = 300
TeacherOf = Callable[..., Teacher]
"""Returns the terms of a model by its name and further names that it is asked by."""
_MARK = "# Drafted by smallfirst discover, "


def unknown_terms(model: str, *_: str) -> Teacher:
    """Return a teacher of whose terms nobody has said anything."""
    return Teacher(model=model)


class Asking(NamedTuple):
    """A request and what its answer says."""

    text: str
    value: Any
    case: Case


class CaseRow(NamedTuple):
    """One case with its answers."""

    drawn: Asking
    """One of its requests, drawn by a hash whatever the answers: it measures and certifies. The most frequent answer
    would not do, as a model that varies agrees with that more often than with what it says when it is asked."""
    usual: Asking
    """The newest request with the most frequent answer, of equally frequent ones the newest: it trains."""
    n: int
    """Requests that asked it."""


def rows_of(task: RecurringTask) -> list[CaseRow]:
    """Return each different case once, in the order of the drawn requests, if its answer has a value.

    Cases that differ in case, spaces or punctuation alone count as one.
    """
    by_text: dict[str, list[Asking]] = {}
    fold = cache(fold_text)
    for case, text, value in task.cases:
        if text.strip() and _is_value(task, value):
            by_text.setdefault(fold(text), []).append(Asking(text, value, case))
    rows = []
    for asked in by_text.values():
        given = [as_text(one.value) for one in asked]
        counts = Counter(given)
        most = max(counts.values())
        usual = next(one for one, said in zip(reversed(asked), reversed(given), strict=True) if counts[said] == most)
        drawn = min(asked, key=lambda one: digest(f"{one.case.id}\0{one.case.at.isoformat()}"))
        rows.append(CaseRow(drawn, usual, len(asked)))
    return sorted(rows, key=lambda row: row.drawn.case.at)


def _is_value(task: RecurringTask, value: Any) -> bool:
    if task.kind == "labels":
        return isinstance(value, str) and value in task.labels
    return value is not None and (task.kind != "fields" or isinstance(value, dict))


def task_settings(task: RecurringTask, rows: Sequence[CaseRow]) -> dict[str, Any] | str:
    """Return `kind` and the kind's settings of task.yaml, or why no kind does."""
    if task.kind == "labels":
        return {"kind": "classify", "labels": list(task.labels)}
    if task.kind == "label lists":
        return {"kind": "classify", "multiple": True, "labels": list(task.labels)}
    if task.kind == "short answers":
        return {"kind": "answer"}
    if task.kind != "fields":
        return f"answers are {task.kind}"
    try:
        schema = infer_schema([one.value for row in rows for one in (row.drawn, row.usual)])
        Extract(name="task", json_schema=schema)
    except (ConfigError, ValueError) as error:
        return f"the JSON of its answers follows no schema that can be kept: {str(error).splitlines()[0]}"
    return {"kind": "extract", "schema": schema}


def source_of(task: RecurringTask, outlook: Outlook, teacher_of: TeacherOf = unknown_terms) -> TaskSource | None:
    """Return the record of where the task was found; None if its answers have no common format."""
    if task.answer_format is None:
        return None
    own = task.answer_format
    templates = tuple(
        wording.template.model_copy(update={"answer_format": wording.found.format})
        if wording.found and wording.found.format != own
        else wording.template
        for wording in task.wordings
    )
    model = task.most_frequent("answered_by")
    share = outlook.moves
    return TaskSource(
        name=task.name,
        templates=templates,
        answer_format=own,
        format_check=task.format_check,
        models=task.models,
        teacher=teacher_of(model, *task.models),
        foretold_share=(share.value, share.low, share.high) if share else None,
    )


def write_draft(
    task: RecurringTask,
    source: TaskSource,
    settings: dict[str, Any],
    rows: Sequence[CaseRow],
    folder: Path,
    max_error: float,
) -> bool:
    """Write the folder of a task; return False if its task.yaml was changed by hand, which then stays as it is."""
    parts, kind, written = parts_of(rows), settings["kind"], {**settings}
    lines = {
        name: [_as_row(row.usual if name == ROWS else row.drawn, row.n, kind) for row in part]
        for name, part in parts.items()
    }
    if "schema" in settings:
        written["schema"] = SCHEMA
    body = _task_yaml(task, written, sorted(parts), max_error)
    return write_folder(folder, source, lines, body, {SCHEMA: settings["schema"]} if "schema" in settings else {})


def write_folder(
    folder: Path, source: TaskSource, parts: Mapping[str, Sequence[Json]], body: str, beside: Mapping[str, Any]
) -> bool:
    """Write source, rows by file, the body of task.yaml and JSON files beside it; return False as `write_draft`."""
    folder.mkdir(parents=True, exist_ok=True)
    source.save(folder / "source.json")
    for name, rows in parts.items():
        write_atomically(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    for name in {VALIDATION, TEST} - parts.keys():
        (folder / name).unlink(missing_ok=True)
    for name, value in beside.items():
        write_atomically(folder / name, json.dumps(value, indent=2, ensure_ascii=False).encode())
    path = folder / "task.yaml"
    if path.exists() and not _is_ours(path.read_text(encoding="utf-8")):
        return False
    write_atomically(path, f"{_MARK}{digest(body)}: a changed file is kept by the next discover.\n\n{body}".encode())
    return True


def n_certifying(n_rows: int) -> int:
    """Return how many of so many rows certify in a run on the draft."""
    ends = _ends(n_rows)
    return max(1, round(CERTIFYING * (ends[VALIDATION] - ends[ROWS])))


def n_training(n_rows: int) -> int:
    """Return from how many of so many rows a run on the draft learns."""
    return _ends(n_rows)[ROWS]


def known_name(templates: Sequence[str], out: Path) -> str | None:
    """Return the name of the task in `out` that has one of these templates or assistants, by id; None without one."""
    for path in sorted(out.glob("*/source.json")):
        try:
            known = TaskSource.load(path)
        except ConfigError:
            continue
        ids = {one.template.id for one in known.templates} | ({known.assistant.id} if known.assistant else set())
        if set(templates) & ids:
            return path.parent.name
    return None


def parts_of(rows: Sequence[CaseRow]) -> dict[str, list[CaseRow]]:
    """Return the rows by file, each in their order; drawn by a hash of the text, whatever its frequency and time.

    Rows too few for three parts are all to learn from.
    """
    ends = _ends(len(rows))
    order = sorted(range(len(rows)), key=lambda i: digest(fold_text(rows[i].drawn.text)))
    place = {i: place for place, i in enumerate(order)}
    parts: dict[str, list[CaseRow]] = {name: [] for name in ends}
    for i, row in enumerate(rows):
        parts[next(name for name, end in ends.items() if place[i] < end)].append(row)
    return parts if all(parts.values()) else {ROWS: list(rows)}


def _ends(n_rows: int) -> dict[str, int]:
    """Return the place in the order of the hashes at which the rows of each file end."""
    shares = (0.5, 0.85, 1.0) if n_rows >= MANY else (0.6, 0.8, 1.0)
    return {name: round(share * n_rows) for name, share in zip((ROWS, VALIDATION, TEST), shares, strict=True)}


def _as_row(asked: Asking, n: int, kind: str) -> dict[str, Any]:
    names = {"classify": ("text", "label"), "extract": ("text", "target"), "answer": ("question", "answer")}[kind]
    if isinstance(asked.value, list):
        names = ("text", "labels")
    facts = facts_of(asked.case, n=n)
    return {names[0]: asked.text, names[1]: asked.value, **facts}


def facts_of(case: Case, **more: Any) -> Json:
    """Return the columns of a row that say who answered it, when, and what that cost."""
    measured = {
        "cost_usd": case.cost_usd,
        "latency_ms": case.latency_ms,
        "prompt_tokens": case.prompt_tokens,
        "completion_tokens": case.completion_tokens,
    }
    origin = {
        "teacher": case.answered_by or "unknown",
        "labelled_on": case.at.date().isoformat(),
        "at": case.at.isoformat(),
        "id": case.id,
        **({"tenant": case.tenant} if case.tenant else {}),
    }
    known = {name: value for name, value in measured.items() if value is not None}
    return {**origin, **more, **known}


def _task_yaml(task: RecurringTask, settings: dict[str, Any], files: Sequence[str], max_error: float) -> str:
    names = {ROWS: "train", VALIDATION: "validation", TEST: "test"}
    live = None if settings.get("multiple") else _GOES_LIVE.get(settings["kind"])
    small = {"small": live[0]} if live else {}
    values = {
        "name": task.name,
        "kind": settings["kind"],
        "about": _about(task),
        **{name: value for name, value in settings.items() if name != "kind"},
        **({"ladder": live[1]} if live else {}),
        "data": {names[name]: name for name in (ROWS, VALIDATION, TEST) if name in files},
        "routing": {"labels": "large", "guarantee": {"max_error": max_error, "unit": "text"}, **small},
        "requests_per_month": a_month(len(task.cases), task.first_at, task.last_at),
    }
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    model = task.models[0] if task.models else ""
    return body + whose_answers(task.most_frequent("answered_by"), model)


def a_month(n_requests: int, first: datetime, last: datetime) -> int:
    """Return how many requests a month so many in this time are."""
    days = max(1.0, (last - first).total_seconds() / 86400)
    return max(1, round(n_requests * MONTH.days / days))


def whose_answers(answered_by: str, model: str) -> str:
    """Return the note of a task.yaml that says whose answers are right."""
    return (
        f"\n# Right is what {answered_by or 'the large model'} answered, asked for as "
        f"{model or 'an unnamed model'}: `learn` promises\n# agreement with it, and accuracy once corrections.jsonl "
        "beside this file holds people's answers.\n"
    )


def _about(task: RecurringTask) -> str:
    """Return the instruction of the largest wording on one line, slots as "…"."""
    turns = task.largest.template.template.turns
    text = " ".join("…".join(turn.pieces) for turn in turns if turn.role != "assistant")
    return shortened(text)


def shortened(text: str) -> str:
    """Return an instruction on one line, as task.yaml shows it."""
    return textwrap.shorten(text, _MOST_ABOUT, placeholder=" …")


def digest(body: str) -> str:
    """Return 12 hex digits of a text."""
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _is_ours(text: str) -> bool:
    found = re.match(rf"{re.escape(_MARK)}([0-9a-f]{{12}}): .*\n\n", text)
    return found is not None and found[1] == digest(text[found.end() :])
