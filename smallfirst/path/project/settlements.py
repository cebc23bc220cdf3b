"""A person's decisions on findings in the answers: `review.jsonl` beside task.yaml, read wherever the rows are.

A decision settles all rows of its finding; a line that is deleted undoes it. What is left out of the rows that measure
and certify goes by a group (a name, a day, a tenant), whatever a model says of it; what models doubt changes training
rows alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record, fingerprint, parse_json_lines
from smallfirst.data.dataset import Example
from smallfirst.data.row_formats import to_json
from smallfirst.measuring.data_issues import SINGLE_ROWS, SYSTEMATIC, DataIssue, IssueKind, names_in, with_names
from smallfirst.path.project.rows import PARTS, Rows
from smallfirst.path.project.task_file import TaskFile

REVIEW = "review.jsonl"
Decision = Literal["map", "drop", "accept", "new", "old", "keep"]
EFFECTS: Mapping[Decision, str] = {
    "map": "old names become the new ones, in all rows",
    "drop": "leave the rows out; of two versions all rows under old names",
    "accept": "what the other rows say is right",
    "new": "the new rule holds: leave out what was answered by the old one, and certify on rows since that day",
    "old": "the old rule holds: leave out what was answered by the new one, and certify on rows before that day",
    "keep": "the answers are right as they are",
}
"""What a decision does. About single rows it changes training rows alone."""
_CHOICES: Mapping[IssueKind, tuple[Decision, ...]] = {
    "versions": ("map", "drop", "keep"),
    "rule": ("new", "old", "keep"),
    "copies": ("accept", "drop", "keep"),
    "answers": ("accept", "drop", "keep"),
}


class Settlement(Record):
    """One decision."""

    id: str
    """Of the finding."""
    decision: Decision
    at: datetime
    kind: IssueKind
    what: str
    n: int
    keys: tuple[str, ...] = ()
    """Fingerprints of texts; empty where a name, a day or a tenant says it."""
    suggested: dict[str, str] = {}
    names: dict[str, str] = {}
    since: datetime | None = None
    tenant: str = ""


def choices(issue: DataIssue, *, labels: bool) -> tuple[Decision, ...]:
    """Return what can be decided; what single fields should say is no whole answer, so only `labels` are accepted."""
    found = _CHOICES.get(issue.kind, ("drop", "keep"))
    return found if labels or issue.kind != "answers" else ("drop", "keep")


def text_key(example: Example) -> str:
    """Return the key of a row in findings: rows that ask the same have one."""
    return fingerprint(example.asked)


def read_settlements(folder: Path) -> tuple[Settlement, ...]:
    """Return the decisions in a task's folder, the oldest first. Raise DataError naming lines that are none."""
    path = folder / REVIEW
    if not path.exists():
        return ()
    lines, problems = parse_json_lines(Settlement, path.read_text(encoding="utf-8-sig"), str(path))
    if problems:
        raise DataError(f"{path}: {len(problems)} lines cannot be used", problems, hint="delete them, and decide again")
    return tuple(line for _, line in lines)


def settle(folder: Path, issue: DataIssue, decision: str, *, labels: bool) -> Settlement:
    """Append a decision. Raise ConfigError for one that does not suit the finding."""
    known = choices(issue, labels=labels)
    if decision not in known:
        raise ConfigError(
            f"{issue.id}: {decision!r} settles no finding of this kind", hint=f"one of {', '.join(known)}"
        )
    shared = {name: getattr(issue, name) for name in ("id", "kind", "what", "n", "names", "since", "tenant")}
    keys = {"keys": issue.keys, "suggested": issue.suggested} if issue.kind not in SYSTEMATIC else {}
    made = Settlement.model_validate({**shared, **keys, "decision": decision, "at": datetime.now(UTC)})
    _write(folder, [*read_settlements(folder), made])
    return made


def undo(folder: Path) -> Settlement | None:
    """Take the last decision back and return it; None without one."""
    *kept, last = read_settlements(folder) or (None,)
    if last is not None:
        _write(folder, [one for one in kept if one is not None])
    return last


def _write(folder: Path, made: Sequence[Settlement]) -> None:
    lines = (one.model_dump_json(exclude_defaults=True) for one in made)
    write_atomically(folder / REVIEW, "".join(f"{line}\n" for line in lines).encode())


def with_settlements(rows: Rows, made: Sequence[Settlement]) -> Rows:
    """Return the rows as the decisions leave them."""
    if not made:
        return rows
    changed = {}
    for name in (*PARTS, "left_out"):
        examples: Sequence[Example] = getattr(rows, name).examples
        for one in made:
            if one.decision != "keep" and (one.kind not in SINGLE_ROWS or name == "train"):
                change = _change(one, learnt=name == "train")
                examples = [after for example in examples if (after := change(example)) is not None]
        changed[name] = getattr(rows, name).subset(getattr(rows, name).name, tuple(examples))
    return rows.model_copy(update=changed)


def renamed(example: Example, made: Sequence[Settlement]) -> Example:
    """Return a row with its answer under the new names."""
    for one in made:
        if one.decision == "map":
            example = _with_answer(example, with_names(_value(example), one.names))
    return example


def without_old_names(file: TaskFile, made: Sequence[Settlement]) -> TaskFile:
    """Return the task file with a list of labels that lacks those that have become others."""
    old = {name for one in made if one.kind == "versions" and one.decision in ("map", "drop") for name in one.names}
    labels = file.settings.get("labels")
    if not old or not isinstance(labels, list | tuple):
        return file
    kept = [label for label in labels if label not in old]
    return file.model_copy(update={"settings": {**file.settings, "labels": kept}})


def _change(one: Settlement, *, learnt: bool) -> Callable[[Example], Example | None]:
    """Return what a decision makes of a row; None leaves it out. Only what is `learnt` is picked by its answer."""
    keys, names = frozenset(one.keys), frozenset(one.names)

    def change(example: Example) -> Example | None:
        if one.decision == "map":
            return renamed(example, [one])
        if one.kind == "versions":
            return None if names & names_in(_value(example)) else example
        if one.kind == "rule" and one.since is not None:
            is_old = one.decision == "old"  # then what lost rows to another answer is right as it is, early and late
            # Not all that changed is found, so what measures and certifies is of one side of the day alone.
            gone = one.names.values() if is_old else names
            about = not learnt or example.shape != "label" or example.answer in gone
            late = bool(example.at) and datetime.fromisoformat(example.at) >= one.since
            return None if about and late == is_old else example
        if one.kind == "tenant":
            return None if example.tenant == one.tenant else example
        key = text_key(example) if keys else ""
        if key not in keys:
            return example
        right = one.suggested.get(key)
        said = right if right is None or example.shape == "label" else json.loads(right)
        if one.decision == "drop":
            return None if said is None or _value(example) != said else example
        return example if said is None else _with_answer(example, said)

    return change


def _value(example: Example) -> Any:
    return json.loads(example.answer) if example.shape in ("labels", "target") else example.answer


def _with_answer(example: Example, value: Any) -> Example:
    answer = value if isinstance(value, str) else to_json(value)
    if answer == example.answer:
        return example
    # Not model_copy, which would keep the key of the old answer.
    return Example(**{name: getattr(example, name) for name in Example.model_fields} | {"answer": answer, "also": ()})
