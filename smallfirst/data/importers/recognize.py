"""From a source of rows to a Guess: its format, what is asked and answered in it, and what remains to be asked."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.base.errors import ConfigError, DataError, Problem
from smallfirst.base.extensions import Registry
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.data.check import joined_by
from smallfirst.data.importers.table import (
    MARGIN,
    Converted,
    Importer,
    RowReading,
    Table,
    as_object,
    as_text,
    read_table,
)
from smallfirst.data.row_formats import Columns, is_blank, to_json
from smallfirst.data.sources.documents import DOCUMENTS, with_documents
from smallfirst.data.sources.folders import list_files
from smallfirst.data.sources.load import load_raw
from smallfirst.data.sources.text_files import FORMATS, MAX_DOCUMENT_BYTES, RawRow, file_format, is_list

IMPORTERS: Registry[Importer] = Registry(
    "smallfirst.importers",
    {
        "batch": "smallfirst.traffic.logs.importer:BATCHES",
        "label_studio": "smallfirst.data.importers.recognize:LABEL_STUDIO",
        "argilla": "smallfirst.data.importers.recognize:ARGILLA",
        "squad": "smallfirst.data.importers.recognize:SQUAD",
        "logs": "smallfirst.traffic.logs.importer:LOGS",
    },
    noun="importer",
)
"""Formats that are no table, in the order in which they are tried; chats and logs are read as `traffic` reads them."""
_LOOKED_AT = 20
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
TEXT_OF_DOCUMENT = "text of the document"
"""Name of the column that the texts of documents get."""
_PARTS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}


class Source(NamedTuple):
    """The rows of a source with all their columns."""

    rows: list[RawRow]
    notes: tuple[str, ...]
    """How its files are written, where that was told by their content."""
    as_it_stands: bool
    """True if `load_rows` reads the same rows from the same address."""
    parts: dict[str, Path]
    """Files of a folder by the part of the rows that their names say: train, validation, test."""
    documents: str = ""
    """The column that names documents, whose texts are in TEXT_OF_DOCUMENT; empty without any."""


def read_source(address: str, progress: ProgressCallback = no_progress) -> Source:
    """Return the rows of the source; of a folder with train and test files those to train on. Raise DataError."""
    path = Path(address)
    if path.is_dir():
        files = []
        for file, rule in list_files(path):
            if file.parent == path and file_format(file) in FORMATS:
                if rule:
                    raise DataError(f"{file}: {rule}", hint="or name the file that it leads to: --from FILE")
                files.append(file)
        stems = {file: file.name.partition(".")[0].casefold() for file in files}
        parts = {part: file for part, names in _PARTS.items() for file in files if stems[file] in names}
        if "train" in parts and len(parts) == len(files):
            return Source(*load_raw(parts["train"], progress), True, parts)
        if files:
            pieces = [load_raw(file, progress) for file in files]
            notes = tuple(note for _, notes in pieces for note in notes)
            found = Source([row for rows, _ in pieces for row in rows], notes, False, {})
            return _with_documents(found, path, progress)
    elif file_format(path) == ".json" and (document := _document(path)):
        return Source([RawRow(address, 1, document)], (), False, {})
    rows, notes = load_raw(address, progress)
    return _with_documents(Source(rows, notes, True, {}), path.parent, progress)


def _with_documents(source: Source, folder: Path, progress: ProgressCallback) -> Source:
    """Return the rows with the texts of the documents in the folder that a column names, if one does."""
    rows = [row.values for row in source.rows if isinstance(row.values, dict)]

    def named(column: str) -> bool:
        values = [row[column] for row in rows[:_LOOKED_AT] if isinstance(row.get(column), str)]
        there = [v for v in values if v.lower().endswith(DOCUMENTS) and "\0" not in v and (folder / v).is_file()]
        return len(there) > len(values) / 2

    column = next((name for name in (rows[0] if rows else ()) if named(name)), "")
    if not column:
        return source
    texts = with_documents(source.rows, Columns(text=TEXT_OF_DOCUMENT, file=column), folder)
    found = list[RawRow]()
    for old, new in zip(source.rows, texts, strict=True):
        values = {**new.values, column: old.values[column]} if isinstance(new.values, dict) else new.values  # type: ignore[index]
        found.append(new._replace(values=values))
        progress(len(found), len(source.rows))
    return source._replace(rows=found, as_it_stands=False, documents=column)


def _document(path: Path) -> dict[str, Any] | None:
    """Return the object that a JSON file is as a whole; None if it is rows, or too large."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_DOCUMENT_BYTES:
            return None
        raw = path.read_bytes()
        value = None if is_list(raw) else json.loads(raw)
    except (ValueError, RecursionError, OSError):
        return None
    return value if isinstance(value, dict) else None


class Guess(NamedTuple):
    """How a source of rows can be read as a task."""

    kind: str
    columns: dict[str, str]
    """Column by role; for `fields` several, separated by commas."""
    rows: list[dict[str, Any]]
    """The rows in the task's own columns."""
    parts: dict[str, list[dict[str, Any]]]
    """Those of the source's other parts, where these do not stand as they are."""
    source: Source
    converted: Converted | None
    """The rows of a format that is no table."""
    title: str
    """What that format is called."""
    unused: tuple[Problem, ...]
    others: tuple[str, ...]
    """Readings that are nearly as likely, each with the option that chooses it: `--label team: classify: …`."""

    @property
    def as_it_stands(self) -> bool:
        """True if a task file can name the source itself."""
        return self.source.as_it_stands and self.converted is None and "fields" not in self.columns

    @property
    def in_words(self) -> str:
        """The reading in words: `classify: text "Mail" → label "Topic" (7 different)`."""
        n_labels = len({row["label"] for row in self.usable}) if "label" in self.columns else 0
        title = f"{self.title}, " if self.title else ""
        return f"{title}{_in_words(self.kind, self.columns)}{f' ({n_labels} different)' if n_labels else ''}"

    @property
    def usable(self) -> list[dict[str, Any]]:
        """The rows that have a text and a label, where one is asked for."""
        own = [role for role in ("text", "question", "label") if role in self.columns]
        return [row for row in self.rows if not any(is_blank(row[role]) for role in own if role in row)]

    @property
    def other_columns(self) -> list[str]:
        """Columns with values that the reading does not use."""
        used = {one for role, name in self.columns.items() for one in (name.split(",") if role == "fields" else [name])}
        rows = self.converted.table.rows if self.converted else [row.values for row in self.source.rows]
        names = dict.fromkeys(
            k for row in rows if isinstance(row, dict) for k, value in row.items() if not is_blank(value)
        )
        return [name for name in names if name not in used]


def guess(source: Source, chosen: Mapping[str, str], where: str) -> Guess:
    """Return the best guess that agrees with what was `chosen`: columns by role and the kind.

    Raise DataError if no row can be used, ConfigError if nothing in it can be an answer.
    """
    good = [row for row in source.rows if isinstance(row.values, dict)]
    unused = [Problem(row.path, row.line, row.values) for row in source.rows if isinstance(row.values, str)]
    if not good:
        raise DataError(f"{where}: {'no row can be read' if unused else 'there are no rows, at most a header'}", unused)
    if chosen.get("kind", "call") == "call" and _call_functions(good):
        raise ConfigError(
            f"{where}: conversations with functions, which are a task of kind call and need no other columns",
            hint="smallfirst init FOLDER --kind call   then name the rows as data.train; --kind chat   reads its texts",
        )
    importer = _importer_of(good)
    converted = importer.convert(good) if importer else None
    if importer and converted and not converted.table.rows:
        raise DataError(f"{where}: no row can be used ({importer.title})", converted.unused)
    table = converted.table if converted else Table([row.values for row in good if isinstance(row.values, dict)])
    readings = read_table(table, chosen)
    if not readings:
        raise _nothing_answers(where, table, chosen)
    label, parts = readings[0].columns.get("label"), dict[str, Table]()
    if label and converted is None and "label" not in chosen and (separator := _separator(table, label)):
        note = f'"{label}" has several labels a text, joined by "{separator}"; with --label {label} they are one'
        converted = Converted(table := _taken_apart(table, label, separator), notes=(note,))
        readings = read_table(table, chosen)
        for part in source.parts.keys() - {"train"}:
            raw = load_raw(source.parts[part])[0]
            unused += [Problem(row.path, row.line, row.values) for row in raw if isinstance(row.values, str)]
            given = Table([row.values for row in raw if isinstance(row.values, dict)])
            parts[part] = _taken_apart(given, label, separator)
    best = readings[0]
    amounts = _amounts(table.rows, best)
    rows = _canonical(table.rows, best, converted.about if converted else "", amounts)
    if source.documents and TEXT_OF_DOCUMENT in best.columns.values():
        own = next(role for role, name in best.columns.items() if name == TEXT_OF_DOCUMENT)
        files = [{"file": row[source.documents]} for row in table.rows]
        rows = [
            file | {name: v for name, v in row.items() if name != own} for file, row in zip(files, rows, strict=True)
        ]
    return Guess(
        kind=best.kind,
        columns=best.columns,
        rows=rows,
        parts={part: _canonical(rows.rows, best, "", amounts) for part, rows in parts.items()},
        source=source,
        converted=converted,
        title=importer.title if importer else "",
        unused=(*unused, *(converted.unused if converted else ())),
        others=_others(readings),
    )


def _separator(table: Table, name: str) -> str:
    """Return what joins several labels in the column, such as "|" in Login|Refund; empty if nothing does."""
    return joined_by(as_text(row[name]) for row in table.rows if not is_blank(row.get(name)))


def _taken_apart(table: Table, name: str, separator: str) -> Table:
    """Return the rows with lists of labels."""
    given = [as_text(row.get(name) or "").split(separator) for row in table.rows]
    lists = [[part.strip() for part in parts if part.strip()] for parts in given]
    return Table([{**row, name: labels or None} for row, labels in zip(table.rows, lists, strict=True)])


def _importer_of(rows: Sequence[RawRow]) -> Importer | None:
    """Return the importer that recognizes most of the first rows; None for a table."""
    head = [row.values for row in rows[:_LOOKED_AT] if isinstance(row.values, dict)]
    for _, importer in IMPORTERS:
        if sum(importer.recognizes(values) for values in head) > len(head) / 2:
            return importer
    return None


def _call_functions(rows: Sequence[RawRow]) -> bool:
    """Return True if most of the first rows have `tools` beside `messages`."""
    head = [row.values for row in rows[:_LOOKED_AT] if isinstance(row.values, dict)]
    return sum(isinstance(one.get("messages"), list) and bool(one.get("tools")) for one in head) > len(head) / 2


def _others(readings: Sequence[RowReading]) -> tuple[str, ...]:
    """Return what tells the plausible readings from the best one, each with its option; one for each option."""
    found: dict[str, str] = {}
    for one in readings[1:]:
        if one.score > readings[0].score - MARGIN:
            best, other = ({"kind": r.kind, **r.columns} for r in (readings[0], one))
            role = next((role for role in other if best.get(role) != other[role]), "kind")
            named = f"--{role} {json.dumps(other[role]) if ' ' in other[role] else other[role]}"
            found.setdefault(named, f"{named}: {_in_words(one.kind, one.columns)}")
    return tuple(found.values())


def _in_words(kind: str, columns: Mapping[str, str]) -> str:
    asked, *answers = (f'{role} "{name}"' for role, name in columns.items())
    return f"{kind}: {asked} → {', '.join(answers)}"


def _canonical(
    rows: Sequence[Mapping[str, Any]], reading: RowReading, about: str, amounts: AbstractSet[str]
) -> list[dict[str, Any]]:
    """Return the rows in the columns of the task, values as its rows have them; a chat with its system prompt.

    The cells of the fields `amounts` are numbers.
    """
    found = []
    for row in rows:
        made: dict[str, Any] = {}
        for role, name in reading.columns.items():
            if role == "fields":
                cells = {one: _field(row.get(one)) for one in name.split(",")}
                made["target"] = {one: json.loads(c) if c and one in amounts else c for one, c in cells.items()}
            elif role == "target":
                made[role] = as_object(row.get(name))
            else:
                value = row.get(name)
                made[role] = value if isinstance(value, list | dict) or value is None else as_text(value)
        if about and reading.kind == "chat":
            turns = (("system", about), ("user", made["question"]), ("assistant", made["answer"]))
            made = {"messages": [{"role": role, "content": text} for role, text in turns]}
        found.append(made)
    return found


def _amounts(rows: Sequence[Mapping[str, Any]], reading: RowReading) -> set[str]:
    """Return the fields of a table without types that are numbers: not all of them stand in the texts as written."""
    text, found = reading.columns.get("text", ""), set()
    for name in reading.columns["fields"].split(",") if "fields" in reading.columns else ():
        cells = [(str(row.get(text)), cell) for row in rows if (cell := _field(row.get(name))) is not None]
        if all(isinstance(cell, str) and _DECIMAL.fullmatch(cell) for _, cell in cells) and any(
            "." in cell and cell not in said for said, cell in cells
        ):
            found.add(name)
    return found


def _field(value: Any) -> Any:
    """Return a cell as a field of a target: text without outer spaces, null for what is empty."""
    if is_blank(value):
        return None
    return value.strip() if isinstance(value, str) else value


def _nothing_answers(where: str, table: Table, chosen: Mapping[str, str]) -> ConfigError:
    names = list(dict.fromkeys(name for row in table.rows for name in row))
    if names == ["text"] and not chosen:
        return ConfigError(
            f"{where}: texts without answers: there is nothing to learn from but how they go on",
            hint=f"smallfirst jobs create {where} CATALOG.SCHEMA.MODEL --follow   trains a model that continues them "
            "(docs/foundation_model.md); to classify them, put them in one folder for each label",
        )
    told = f" with {', '.join(f'--{role} {name}' for role, name in chosen.items())}" if chosen else ""
    return ConfigError(
        f"{where}: nothing{told} tells what is asked and what answers it; columns: {', '.join(map(repr, names[:20]))}",
        hint="name them: --text COLUMN --label COLUMN (or --target, --fields, --question and --answer)",
    )


# Formats that are no table: exports of Label Studio and Argilla, of which people's answers alone are read, and SQuAD

NO_ANSWER = "no answer"
"""Answer of a question that its paragraph does not answer."""


class BuiltInImporter(NamedTuple):
    """An importer of functions of the row."""

    title: str
    recognizes: Callable[[dict[str, Any]], bool]
    convert: Callable[[Sequence[RawRow]], Converted]


def _label_studio(rows: Sequence[RawRow]) -> Converted:
    """Read `data` with `annotations`, each a list of results by the name of their control."""

    def asked(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in row["data"].items() if not isinstance(value, dict)}

    def judgements(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        kept = [one for one in row["annotations"] if not one.get("was_cancelled")]
        return [answers for one in kept if (answers := _results(one.get("result") or []))]

    return _as_table(rows, asked, judgements)


def _argilla(rows: Sequence[RawRow]) -> Converted:
    """Read the `fields` of records with the `responses` that each person submitted, by question."""

    def judgements(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        people: dict[str, dict[str, Any]] = defaultdict(dict)
        for question, given in (row.get("responses") or {}).items():
            for n, one in enumerate(given or []):
                if one.get("status", "submitted") == "submitted":
                    people[str(one.get("user_id", n))][question] = _spans(one.get("value"))
        return list(people.values())

    return _as_table(rows, lambda row: row["fields"], judgements)


def _squad(rows: Sequence[RawRow]) -> Converted:
    """Read paragraphs (`context`) with questions, each with answers that are all right."""
    table = [found for row in rows if isinstance(row.values, dict) for found in _questions(row.values)]
    n_none = sum(not row["answer"] for row in table)
    notes = (f'{n_none:,} questions have no answer in their text and are read as "{NO_ANSWER}"',) if n_none else ()
    answered = [row | {"answer": row["answer"] or NO_ANSWER} for row in table]
    return Converted(Table(answered, ("question", "context"), ("answer",)), notes=notes)


def _questions(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions of paragraphs (`qas`), or the one that a row has."""
    asked = [(p, q, q.get("answers", [])) for p in _with_questions(document) for q in p["qas"]]
    if isinstance(given := document.get("answers"), dict) and "answer_start" in given and "question" in document:
        asked = [(document, document, [{"text": text} for text in given["text"]])]
    for paragraph, question, answers in asked:
        texts = list(dict.fromkeys(answer["text"] for answer in answers))
        answer = texts[0] if len(texts) == 1 else texts
        yield {"question": question["question"], "context": paragraph.get("context", ""), "answer": answer}


LABEL_STUDIO = BuiltInImporter(
    "Label Studio export",
    lambda row: isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list),
    _label_studio,
)
ARGILLA = BuiltInImporter(
    "Argilla export",
    lambda row: isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict | None),
    _argilla,
)
SQUAD = BuiltInImporter("questions on paragraphs (SQuAD)", lambda row: next(_questions(row), None) is not None, _squad)


def _as_table(
    rows: Sequence[RawRow],
    asked: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    judgements: Callable[[Mapping[str, Any]], list[dict[str, Any]]],
) -> Converted:
    """Return what people agreed on as a table; `judgements` are the answers of each person to a row."""
    table: list[dict[str, Any]] = []
    unused, questions, n_suggested = [], dict[str, None](), 0
    for path, line, values in rows:
        if not isinstance(values, dict):
            continue
        people = judgements(values)
        n_suggested += bool(values.get("suggestions") or values.get("predictions"))
        if len({to_json(one) for one in people}) != 1:
            why = "people gave different answers" if people else "no person's answer"
            unused.append(Problem(path, line, why))
        else:
            questions |= dict.fromkeys(people[0])
            table.append({**asked(values), **people[0]})
    for name in questions:  # several labels are a list, one is none
        held = [judged for judged in table if isinstance(judged.get(name), list)]
        if all(len(judged[name]) == 1 for judged in held):
            for judged in held:
                judged[name] = judged[name][0]
    fields = dict.fromkeys(name for row in table for name in row if name not in questions)
    note = f"suggestions of models ({n_suggested:,} rows) are not read: people's answers alone are"
    return Converted(Table(table, tuple(fields), tuple(questions)), tuple(unused), (note,) if n_suggested else ())


def _results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the answers of one annotation by control: a label or labels, text, or spans as fields."""
    answers: dict[str, Any] = {}
    spans: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in results:
        value, name, kind = one.get("value") or {}, str(one.get("from_name", "label")), str(one.get("type", ""))
        held = value.get(kind)
        if kind in ("labels", "hypertextlabels") and "text" in value:
            spans[name] += [{"label": label, "text": value["text"]} for label in held or []]
        elif isinstance(held, list):
            answers[name] = [" / ".join(item) if isinstance(item, list) else item for item in held]
        elif not is_blank(held):
            answers[name] = held
    return answers | {name: _spans(found) for name, found in spans.items()}


def _spans(value: Any) -> Any:
    """Return spans of a text as fields, a list where a label has several; anything else as it is."""
    if not isinstance(value, list) or not value or not all(isinstance(s, dict) and "label" in s for s in value):
        return value
    fields: dict[str, Any] = {}
    for span in value:
        held, text = fields.get(span["label"]), span.get("text", "")
        fields[span["label"]] = text if held is None else [*(held if isinstance(held, list) else [held]), text]
    return fields


def _with_questions(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield every object that has a list of questions, `qas`, however deep."""
    if isinstance(value, dict) and depth < 8:
        if isinstance(value.get("qas"), list):
            yield value
        for held in value.values():
            yield from _with_questions(held, depth + 1)
    elif isinstance(value, list):
        for held in value:
            yield from _with_questions(held, depth + 1)
