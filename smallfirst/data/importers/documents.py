"""JSON files that are one document: SQuAD's paragraphs with questions, and intents with utterances and slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from smallfirst.data.importers.table import Converted, Table
from smallfirst.data.sources.reader import RawRow


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
        asked = [(p, q, q.get("answers", [])) for p in _find(document, "qas") for q in p["qas"]]
        if isinstance(given := document.get("answers"), dict) and "answer_start" in given and "question" in document:
            asked = [(document, document, [{"text": text} for text in given["text"]])]
        for paragraph, question, answers in asked:
            texts = list(dict.fromkeys(answer["text"] for answer in answers))
            answer = texts[0] if len(texts) == 1 else texts
            yield {"question": question["question"], "context": paragraph.get("context", ""), "answer": answer}


class IntentsImporter:
    """Intents by name with utterances in pieces, some of which fill a slot (Snips NLU)."""

    title = "intents with utterances"

    def recognizes(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("intents"), dict) and next(self._rows(row), None) is not None

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        table = [found for row in rows if isinstance(row.values, dict) for found in self._rows(row.values)]
        return Converted(Table(table, ("text",), ("intent", "slots")))

    @staticmethod
    def _rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for intent, held in document["intents"].items():
            for utterance in held.get("utterances", []) if isinstance(held, dict) else []:
                pieces = utterance.get("data", [])
                slots = {piece["slot_name"]: piece["text"] for piece in pieces if "slot_name" in piece}
                yield {"text": "".join(piece["text"] for piece in pieces), "intent": intent, "slots": slots}


SQUAD = SquadImporter()
INTENTS = IntentsImporter()
NO_ANSWER = "no answer"
"""Answer of a question that its paragraph does not answer."""


def _find(value: Any, key: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield every object that has `key`, however deep."""
    if isinstance(value, dict) and depth < 8:
        if isinstance(value.get(key), list):
            yield value
        for held in value.values():
            yield from _find(held, key, depth + 1)
    elif isinstance(value, list):
        for held in value:
            yield from _find(held, key, depth + 1)
