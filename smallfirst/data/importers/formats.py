"""Formats of rows that are no table: exports of Label Studio and Argilla, and SQuAD's paragraphs with questions.

Of labelling tools people's answers alone are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from smallfirst.base.errors import Problem
from smallfirst.data.importers.table import Converted, Table
from smallfirst.data.row_formats import is_blank, to_json
from smallfirst.data.sources.reader import RawRow

NO_ANSWER = "no answer"
"""Answer of a question that its paragraph does not answer."""


class LabelStudioImporter:
    """JSON export: `data` with `annotations`, each a list of results."""

    title = "Label Studio export"

    def recognizes(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        return _as_table(rows, self._asked, self._judgements)

    @staticmethod
    def _asked(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in row["data"].items() if not isinstance(value, dict)}

    @staticmethod
    def _judgements(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the answers of each annotation by the name of its control."""
        kept = [one for one in row["annotations"] if not one.get("was_cancelled")]
        return [answers for one in kept if (answers := _results(one.get("result") or []))]


class ArgillaImporter:
    """JSON of a dataset's records: `fields` with `responses` by question."""

    title = "Argilla export"

    def recognizes(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict | None)

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        return _as_table(rows, lambda row: row["fields"], self._judgements)

    @staticmethod
    def _judgements(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the submitted answers of each person by question."""
        people: dict[str, dict[str, Any]] = defaultdict(dict)
        for question, given in (row.get("responses") or {}).items():
            for n, one in enumerate(given or []):
                if one.get("status", "submitted") == "submitted":
                    people[str(one.get("user_id", n))][question] = _spans(one.get("value"))
        return list(people.values())


class SquadImporter:
    """Paragraphs (`context`) with questions (`qas`), or one question a row, each with answers that are all right."""

    title = "questions on paragraphs (SQuAD)"

    def recognizes(self, row: dict[str, Any]) -> bool:
        return next(self._rows(row), None) is not None

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        table = [found for row in rows if isinstance(row.values, dict) for found in self._rows(row.values)]
        n_none = sum(not row["answer"] for row in table)
        notes = (f'{n_none:,} questions have no answer in their text and are read as "{NO_ANSWER}"',) if n_none else ()
        answered = [row | {"answer": row["answer"] or NO_ANSWER} for row in table]
        return Converted(Table(answered, ("question", "context"), ("answer",)), notes=notes)

    @staticmethod
    def _rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        asked = [(p, q, q.get("answers", [])) for p in _with_questions(document) for q in p["qas"]]
        if isinstance(given := document.get("answers"), dict) and "answer_start" in given and "question" in document:
            asked = [(document, document, [{"text": text} for text in given["text"]])]
        for paragraph, question, answers in asked:
            texts = list(dict.fromkeys(answer["text"] for answer in answers))
            answer = texts[0] if len(texts) == 1 else texts
            yield {"question": question["question"], "context": paragraph.get("context", ""), "answer": answer}


LABEL_STUDIO = LabelStudioImporter()
ARGILLA = ArgillaImporter()
SQUAD = SquadImporter()


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
