"""Make a task's folder: from a commented template, or from rows of any shape."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from smallfirst.base.errors import ConfigError, Problem, did_you_mean
from smallfirst.base.files import write_atomically
from smallfirst.base.progress import ProgressCallback, format_table, no_progress
from smallfirst.data.importers.recognize import Guess, guess, read_source
from smallfirst.data.importers.table import ROLES
from smallfirst.data.row_formats import Columns, is_blank, to_json
from smallfirst.data.sources.load import load_raw, load_valid, without_collections
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.tasks import DEFAULT_KIND, TASK_KINDS

ROWS_FILE, UNUSED_FILE = "rows.jsonl", "not_used.jsonl"
"""Files beside task.yaml: rows in the task's own columns, and the rows of the source that are not among them."""
_MOST_CHOICES = 10
_OWN_PASSAGES = 0.95
_ROWS_SHOWN, _WIDTH = 3, 100
_OUT_OF_SCOPE = re.compile(r"oos|ood|out ?of ?(scope|domain)|none of (the above|these|the others)")
"""Names, without case and punctuation, of labels for requests that are not the task's."""
_SUGGESTED = {"chat": 0.5, "answer": 0.7}
"""What is suggested as good enough, by kind; 0.8 for the others."""


class Scaffold(NamedTuple):
    """A folder that was made from rows."""

    task_yaml: Path
    guess: Guess
    unused: tuple[Problem, ...]
    """Rows that the task does not use."""

    @property
    def in_words(self) -> list[str]:
        """What was recognized, on three rows, what was assumed and what is not used."""
        found = self.guess
        lines = [*found.source.notes]
        lines.append(f"{found.in_words}, {len(found.usable):,} rows")
        lines += ["", *(f"  {line}" for line in _table(found.rows)), ""]
        lines += [f"note: {note}" for note in (found.converted.notes if found.converted else ())]
        lines += [f"or: {other}" for other in found.others]
        used = {*_beside(found), found.source.documents}
        if others := [name for name in found.other_columns if name not in used]:
            lines.append(f"columns that are not used: {', '.join(others)}")
        if self.unused:
            counts = Counter(problem.rule.partition(":")[0] for problem in self.unused).most_common(3)
            where = "" if found.as_it_stands else f", listed in {self.task_yaml.parent / UNUSED_FILE}"
            lines.append(f"rows that are not used: {len(self.unused):,}{where}")
            lines += [f"  {n:,} x {rule}" for rule, n in counts]
        return lines


def init(
    folder: str | Path,
    *,
    from_: str | Path | None = None,
    kind: str | None = None,
    good_enough: float | None = None,
    **columns: str | Sequence[str],
) -> TaskFile:
    """Make the folder of a task and return its task file: from rows of any shape, or from the template of a kind.

    Args:
        folder: where task.yaml is written; its name is the task's.
        from_: a file, folder or address of rows. Where these leave something open, what is likeliest is taken.
        kind: classify, extract, answer or chat; left out: what the rows look like.
        good_enough: the gate, an accuracy in (0, 1); left out, task.yaml has a line for it that counts once written.
        columns: names of columns by role: text, label, labels, target, fields, question, answer, context.

    Raises:
        ConfigError, DataError: task.yaml is there, nothing can be an answer, or the rows cannot be read.
    """
    if from_ is None:
        return read_task_file(write_template(Path(folder), kind or DEFAULT_KIND, good_enough))
    chosen = {role: name if isinstance(name, str) else ",".join(name) for role, name in columns.items()}
    chosen |= {"kind": kind} if kind else {}
    return read_task_file(scaffold(Path(folder), str(from_), chosen, good_enough).task_yaml)


def write_template(folder: Path, kind: str, good_enough: float | None = None) -> Path:
    """Write the commented task.yaml of a kind. Raise ConfigError if there is one already."""
    template = TASK_KINDS.get(kind).template()
    template += "" if good_enough is None else f"\ngate: {_inline(_gate(kind, good_enough))}\n"
    target = _free(folder / "task.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(template, encoding="utf-8")
    return target


@without_collections()
def scaffold(
    folder: Path,
    source: str,
    chosen: Mapping[str, str],
    good_enough: float | None = None,
    *,
    progress: ProgressCallback = no_progress,
) -> Scaffold:
    """Write the task of a source's rows into the folder: task.yaml, and converted rows where they must be.

    `chosen` are columns by role and the kind; of what remains open the likeliest is taken. `good_enough` is the
    accuracy that makes the gate, or None. Raise as `init` does.
    """
    for role in chosen.keys() - {"kind", *ROLES}:
        raise ConfigError(f"{role}: rows have no such part{did_you_mean(role, ROLES)}", hint=", ".join(ROLES))
    target = _free(folder / "task.yaml")
    found = guess(read_source(source, progress), chosen, source)
    data, unused = _data(folder, source, found)
    if (foreign := _out_of_scope_label(found)) is not None:
        data["out_of_scope_label"] = foreign
    text = _task_yaml(source, found, data, unused, good_enough)
    if not found.as_it_stands:
        model = found.converted.model if found.converted else ""
        mark = {"teacher": model, "labelled_on": ""} if model else {}  # as rows that `smallfirst label` writes
        _write_lines(_free(folder / ROWS_FILE), [row | mark for row in found.rows])
        for part, rows in found.parts.items():
            _write_lines(_free(folder / f"{part}.jsonl"), rows)
        if unused:
            _write_lines(folder / UNUSED_FILE, [problem._asdict() for problem in unused])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text.encode())
    return Scaffold(target, found, unused)


def _free(path: Path) -> Path:
    if path.exists():
        raise ConfigError(f"{path} exists already", hint="edit it, or name another folder")
    return path


def _data(folder: Path, source: str, found: Guess) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """Return the `data` settings, and the rows that are not used."""
    passages = [to_json(row["context"]) for row in found.rows if row.get("context")]
    shared = len(set(passages)) < _OWN_PASSAGES * len(passages)  # rows on one passage are not independent
    if not found.as_it_stands:
        others = {part: f"{part}.jsonl" for part in found.source.parts if part in found.parts}
        data: dict[str, Any] = {"train": ROWS_FILE, **others} | ({"columns": {"group": "context"}} if shared else {})
        if found.source.documents:
            place = Path(source) if Path(source).is_dir() else Path(source).parent
            data |= {"documents": os.path.relpath(place, folder), "columns": {"file": "file"}}
        return data, found.unused
    parts = found.source.parts or {"train": Path(source)}
    places = {part: Path(os.path.relpath(path, folder)) if path.exists() else path for part, path in parts.items()}
    data = {part: path.as_posix() for part, path in places.items()}
    columns = found.columns | ({"group": found.columns["context"]} if shared else {})
    if different := _beside(found) | {role: name for role, name in columns.items() if role != name}:
        data["columns"] = different
    good, problems = load_valid(parts["train"], columns=Columns.model_validate(different))
    bad = {(problem.path, problem.line): problem for problem in problems}
    if bad:
        data["skip_bad_rows_up_to"] = math.ceil(100 * len(bad) / (len(bad) + len(good))) / 100
    return data, tuple(bad.values())


def _beside(found: Guess) -> dict[str, str]:
    """Return the columns of when and by whom every row was asked, if rows are read as they stand."""
    rows = [row.values for row in found.source.rows if found.as_it_stands and isinstance(row.values, dict)]
    return {name: name for name in ("at", "tenant") if rows and not any(is_blank(row.get(name)) for row in rows)}


def _out_of_scope_label(found: Guess) -> str | None:
    """Return the label whose name says that its rows are not the task's, in any file; None without exactly one."""
    if "label" not in found.columns or found.kind != "classify":
        return None
    others = [path for part, path in (found.source.parts or {}).items() if part != "train"]
    rows = [row.values for path in others for row in load_raw(path)[0] if isinstance(row.values, dict)]
    labels = {str(row["label"]) for row in found.rows} | {str(row.get(found.columns["label"])) for row in rows}
    named = [label for label in labels if _OUT_OF_SCOPE.fullmatch(re.sub(r"[\W_]+", " ", label.casefold()).strip())]
    return named[0] if len(named) == 1 and len(labels) > 2 else None


def _gate(kind: str, least: float) -> dict[str, Any]:
    """Return the gate that asks for so much; open text has no right and wrong, so its token F1 counts."""
    return {"measures_at_least": {"token_f1": least}} if kind == "chat" else {"accuracy_at_least": least}


def _inline(gate: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(gate), default_flow_style=True).strip()


def _task_yaml(
    source: str, found: Guess, data: Mapping[str, Any], unused: Sequence[Problem], good_enough: float | None
) -> str:
    """Return the text of a task file: what differs from the defaults, where the rows are from, and what comes next."""
    n_used = len(found.usable)
    lines = [f"{n_used:,} rows of {source}{f' ({found.title})' if found.title else ''}"]
    if unused:
        where = f"listed in {UNUSED_FILE}" if not found.as_it_stands else "named by smallfirst check"
        lines.append(f"Not used: {len(unused):,} rows, {where}")
    lines += found.converted.notes if found.converted else ()
    if (label := data.get("out_of_scope_label")) is not None:
        lines.append(
            f"Rows of {label} are outside the task (data.out_of_scope_label): they train nothing, and tune and"
        )
        lines.append(
            f"measure what tells foreign requests apart. If it is a label to answer with, write other: {label}"
        )
    about = found.converted.about if found.converted else ""
    values: dict[str, Any] = {"kind": found.kind, **({"about": about} if about else {}), **_settings(found)}
    values["data"] = data
    if good_enough is not None:
        values["gate"] = _gate(found.kind, good_enough)
    model = (found.converted.model if found.converted else "").partition(",")[0] or "gpt-4o-mini"
    large = (
        "# The large model that answers today, to compare with and to fall back to; its key is in OPENAI_API_KEY.\n"
        f"# large: {{endpoint: {{base_url: https://api.openai.com/v1, model: {model}}}}}\n"
    )
    written = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    if "gate" not in values:
        gate = "# What is good enough to answer every request; without it certified answers alone go live.\n"
        large = f"{gate}# gate: {_inline(_gate(found.kind, _SUGGESTED.get(found.kind, 0.8)))}\n{large}"
    comments = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    return f"{comments}\n{written}\n{large}"


def _settings(found: Guess) -> dict[str, Any]:
    """Return the kind's own settings that the rows tell."""
    if "labels" in found.columns:
        return {"multiple": True}
    if found.kind != "answer":
        return {}
    answers = [row["answer"] for row in found.rows]
    different = sorted({answer for answer in answers if isinstance(answer, str)})
    if all(isinstance(answer, str) for answer in answers) and 1 < len(different) <= _MOST_CHOICES < len(answers) / 5:
        return {"choices": different}
    return {"not_answerable": "no answer"} if "no answer" in different else {}


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the first rows that end differently, as a table with each cell on one line."""
    different: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        different.setdefault(to_json(list(row.values())[-1]), row)
    shown = list(different.values())[:_ROWS_SHOWN] if len(different) >= _ROWS_SHOWN else rows[:_ROWS_SHOWN]
    names = list(dict.fromkeys(name for row in shown for name in row))
    cells = [[row.get(name) for name in names] for row in shown]
    texts = [[" ".join((cell if isinstance(cell, str) else to_json(cell)).split()) for cell in row] for row in cells]
    width = _WIDTH // max(1, len(names))
    return format_table([names, *([t if len(t) <= width else f"{t[: width - 1]}…" for t in row] for row in texts)])


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(f"{to_json(row)}\n" for row in rows).encode())
