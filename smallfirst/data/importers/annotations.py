"""Exports of labelling tools: Label Studio's and Argilla's JSON, with people's answers alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from smallfirst.data.importers.table import Converted, Table
from smallfirst.data.row_folding import is_blank
from smallfirst.data.row_formats import to_json
from smallfirst.data.sources.reader import RawRow
from smallfirst.errors import Problem


class LabelStudioImporter:
    """JSON export: `data` with `annotations` (in old exports `completions`), each a list of results."""

    title = "Label Studio export"

    def recognizes(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("data"), dict) and isinstance(self._annotations(row), list)

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        return _as_table(rows, self._asked, self._judgements)

    @staticmethod
    def _annotations(row: Mapping[str, Any]) -> Any:
        return row.get("annotations", row.get("completions"))

    @staticmethod
    def _asked(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in row["data"].items() if not isinstance(value, dict)}

    def _judgements(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the answers of each annotation by the name of its control."""
        kept = [one for one in self._annotations(row) if not one.get("was_cancelled") and not one.get("skipped")]
        return [answers for one in kept if (answers := _results(one.get("result") or []))]


class ArgillaImporter:
    """JSON of a dataset's records: `fields` with `responses` by question."""

    title = "Argilla export"

    def recognizes(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("fields"), dict) and "responses" in row

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        return _as_table(rows, lambda row: row["fields"], self._judgements)

    @staticmethod
    def _judgements(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the submitted answers of each person by question."""
        people: dict[str, dict[str, Any]] = defaultdict(dict)
        responses = row["responses"] or {}
        if isinstance(responses, list):  # of the first version: a list of responses with values by question
            for n, one in enumerate(responses):
                if one.get("status", "submitted") == "submitted":
                    people[str(one.get("user_id", n))] = {q: v.get("value") for q, v in one.get("values", {}).items()}
        else:
            for question, given in responses.items():
                for n, one in enumerate(given or []):
                    if one.get("status", "submitted") == "submitted":
                        people[str(one.get("user_id", n))][question] = one.get("value")
        return [{q: _spans(v) for q, v in answers.items()} for answers in people.values()]


LABEL_STUDIO = LabelStudioImporter()
ARGILLA = ArgillaImporter()


def _as_table(rows: Sequence[RawRow], asked: Any, judgements: Any) -> Converted:
    table: list[dict[str, Any]] = []
    unused, questions = [], dict[str, None]()
    n_several = 0
    for row in rows:
        if not isinstance(row.values, dict):
            continue
        people = judgements(row.values)
        if not people:
            unused.append(Problem(row.path, row.line, "no person's answer"))
        elif len({to_json(one) for one in people}) > 1:
            unused.append(Problem(row.path, row.line, "people gave different answers"))
        else:
            n_several += len(people) > 1
            questions |= dict.fromkeys(people[0])
            table.append({**asked(row.values), **people[0]})
    for name in questions:  # several labels are a list, one is none
        held = [judged for judged in table if isinstance(judged.get(name), list)]
        if all(len(judged[name]) == 1 for judged in held):
            for judged in held:
                judged[name] = judged[name][0]
    fields = dict.fromkeys(name for row in table for name in row if name not in questions)
    notes = [f"{n_several:,} rows have several answers that agree"] if n_several else []
    suggested = sum(
        bool(r.values.get("suggestions") or r.values.get("predictions")) for r in rows if isinstance(r.values, dict)
    )
    if suggested:
        notes.append(f"suggestions of models ({suggested:,} rows) are not read: people's answers alone are")
    return Converted(Table(table, tuple(fields), tuple(questions)), tuple(unused), tuple(notes))


def _results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the answers of one annotation by control: a label or labels, text, or spans as fields."""
    answers: dict[str, Any] = {}
    spans: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in results:
        value, name = one.get("value") or {}, str(one.get("from_name", "label"))
        kind = str(one.get("type", ""))
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
