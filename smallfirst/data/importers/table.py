"""Which columns of a table are asked about and which answer: every plausible reading, scored by names and contents.

The best reading is taken; where another one is nearly as good, both are offered as a question.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from smallfirst.base.errors import ConfigError, Problem, did_you_mean
from smallfirst.data.row_formats import is_blank, scalar_text
from smallfirst.data.sources.text_files import RawRow

ROLES = ("text", "label", "labels", "target", "fields", "question", "answer", "context")
"""Parts of a row that a column, or for `fields` several, may play."""
MARGIN = 1.0
"""Readings whose scores differ by less are both plausible."""
MAX_COLUMNS = 200
"""Of a table with more it must be said which one is asked: to try each with every other takes minutes."""
_SAMPLE = 2000
_FIRST = 50

_NAMES = {
    "text": "text message review body content utterance sentence tweet comment email mail ticket description document "
    "transcript narrative request query input nachricht texto texte mensaje",
    "label": "label class category intent topic sentiment target tag tags theme thema kategorie klasse categoria "
    "categorie etiqueta",
    "labels": "labels tags topics categories genres classes",
    "weak_label": "type rating stars status priority department team queue group kind score decision polarity emotion "
    "lang language spam v1",
    "question": "question query frage pregunta ask",
    "answer": "answer answers antwort respuesta decision reply solution",
    "context": "context passage paragraph kontext background article abstract",
    "prompt": "prompt instruction instructions question query user input",
    "response": "response completion output reply answer assistant",
    "target": "target json fields entities output extraction expected parsed result slots",
}
_WORDS = {role: frozenset(names.split()) for role, names in _NAMES.items()}
_SHORT_ANSWER_WORDS = 8
_MOST_CHOICES = 10


class RowReading(NamedTuple):
    """One way to read the rows."""

    kind: str
    columns: dict[str, str]
    """Column by role; for `fields` several, separated by commas."""
    score: float


class Table(NamedTuple):
    """Rows with the columns that may be asked about and those that may answer; None where any may."""

    rows: Sequence[Mapping[str, Any]]
    asked: tuple[str, ...] | None = None
    answers: tuple[str, ...] | None = None


class Converted(NamedTuple):
    """The rows of a format as a table."""

    table: Table
    unused: tuple[Problem, ...] = ()
    """Rows that cannot be used, each with the reason."""
    notes: tuple[str, ...] = ()
    """What was assumed, changed or left out, in words for the user."""
    about: str = ""
    """The job in words: the system prompt that all rows share."""
    model: str = ""
    """The model that gave the answers; empty for people's."""


class Importer(Protocol):
    """One format of rows that is no table."""

    title: str
    """What the format is called, such as "Label Studio export"."""

    def recognizes(self, row: dict[str, Any]) -> bool:
        """Return True if the row is of this format."""

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        """Return the rows as a table. Rows that break a rule are not among them."""


def read_table(table: Table, chosen: Mapping[str, str]) -> list[RowReading]:
    """Return the plausible readings, the best first, that agree with what was chosen: columns by role and the kind.

    Raise ConfigError if a chosen column does not exist, or none is chosen of more than MAX_COLUMNS.
    """
    table = table._replace(rows=table.rows[:: max(1, len(table.rows) // _SAMPLE)])
    n_columns = len({name for row in table.rows for name in row})
    if n_columns > MAX_COLUMNS and not {"text", "question"} & chosen.keys():
        raise ConfigError(
            f"{n_columns:,} columns; of more than {MAX_COLUMNS} it is not guessed which one is asked",
            hint="name them: --text COLUMN --label COLUMN (or --target, --fields, --question and --answer)",
        )
    profiles = profile_columns(table.rows)
    for role, names in chosen.items():
        for name in names.split(",") if role == "fields" else [names]:
            if role in ROLES and name not in profiles:
                known = ", ".join(profiles)
                raise ConfigError(
                    f"--{role} {name}: no such column{did_you_mean(name, profiles)}", hint=f"choose one of {known}"
                )
    unique: dict[tuple[Any, ...], RowReading] = {}
    for one in sorted(_Finder(table, profiles, chosen).readings(), key=lambda one: -one.score):
        unique.setdefault((one.kind, *sorted(one.columns.items())), one)
    return list(unique.values())


class _Finder:
    """Finds the readings of one table."""

    def __init__(self, table: Table, profiles: Mapping[str, Profile], chosen: Mapping[str, str]) -> None:
        self.table, self.profiles, self.chosen = table, profiles, chosen
        self.asked = [p for p in profiles.values() if table.asked is None or p.name in table.asked]
        self.answers = [p for p in profiles.values() if table.answers is None or p.name in table.answers]
        self.filled = {name: [row for row in table.rows if not is_blank(row.get(name))] for name in profiles}

    def readings(self) -> Iterator[RowReading]:
        """Yield the readings that agree with everything that was chosen."""
        own = {role: name for role, name in self.chosen.items() if role in ROLES}
        for text in self._texts():
            others = [p for p in self.answers if p.name != text.name]
            found = (*self._classify(text, others), *self._extract(text, others), *self._answer(text, others))
            for kind, columns, score in found:
                if "context" in own:
                    columns.setdefault("context", own["context"])
                if own.items() <= columns.items() and self.chosen.get("kind", kind) == kind:
                    yield RowReading(kind, columns, self._text_score(text) + score)

    def _texts(self) -> list[Profile]:
        named = {self.chosen[role] for role in ("text", "question") if role in self.chosen}
        if named:
            return [p for p in self.asked if p.name in named]
        return [p for p in self.asked if p.content in ("free", "short", "id") and not p.numeric] if self.asked else []

    def _text_score(self, p: Profile) -> float:
        likely = {"free": 1.0, "short": 0.0}.get(p.content, -2.0)
        name = max(_name_score(role, p.name) for role in ("text", "question", "prompt"))
        return likely + name + min(math.log2(1 + p.words), 6.0) / 2

    def _classify(self, text: Profile, others: Sequence[Profile]) -> Iterator[tuple[str, dict[str, str], float]]:
        for p in others:
            if p.content == "texts" and not _is_list_of_answers(p):
                score = 1 + _name_score("labels", p.name)
                yield "classify", {"text": text.name, "labels": p.name}, score
                continue
            known = max(_name_score("label", p.name), _name_score("weak_label", p.name) / 2)
            named = known == 3 and p.content in ("short", "id", "constant")  # rows too few for values to repeat
            if p.content == "few" or named or self.chosen.get("label") == p.name:
                size = -1.0 if named else 1.0 if 2 <= p.n_distinct <= 30 else 0.5 if p.n_distinct <= 150 else 0.0
                yield "classify", {"text": text.name, "label": p.name}, known + size - 0.5 * p.numeric

    def _extract(self, text: Profile, others: Sequence[Profile]) -> Iterator[tuple[str, dict[str, str], float]]:
        for p in others:
            if p.content == "object":
                yield "extract", {"text": text.name, "target": p.name}, 3 + _name_score("target", p.name)
        fields = [p.name for p in others if "," not in p.name and self._stands_in(text.name, p)]
        if chosen := self.chosen.get("fields"):
            yield "extract", {"text": text.name, "fields": chosen}, 3.0
        elif len(fields) > 1 and any(self.profiles[name].content != "few" for name in fields):
            yield "extract", {"text": text.name, "fields": ",".join(fields)}, min(1 + 0.75 * len(fields), 4.0)

    def _stands_in(self, text: str, p: Profile) -> bool:
        """Return True if the column's values mostly stand in the text, as an extracted field's do."""
        if p.content in ("empty", "constant", "object", "texts", "free") and p.words > 6:
            return False
        rows = self.filled[p.name]

        def share(some: Sequence[Mapping[str, Any]]) -> float:
            held = [_holds(str(row.get(text)), as_text(row[p.name]), numeric=p.numeric) for row in some]
            return sum(held) / max(1, len(held))

        return len(rows) >= 0.3 * len(self.table.rows) and share(rows[:_FIRST]) >= 0.1 and share(rows) >= 0.5

    def _answer(self, text: Profile, others: Sequence[Profile]) -> Iterator[tuple[str, dict[str, str], float]]:
        question = _name_score("question", text.name)
        pairs = {"answer", "question"} & self.chosen.keys() or self.table.answers
        for p in others:
            name = max(_name_score("answer", p.name), _name_score("response", p.name))
            context = self._context(text, p)
            asked = question or context or "answer" in self.chosen
            labels = p.content == "few" and bool(self.table.answers or not asked)
            labels |= p.content == "texts" and not _is_list_of_answers(p)  # these are classified
            named = pairs or (name and max(question, _name_score("prompt", text.name)))
            if not named or labels or p.content in ("object", "empty", "constant", "id"):
                continue
            columns = {"question": text.name, "answer": p.name} | ({"context": context} if context else {})
            short = p.words <= _SHORT_ANSWER_WORDS
            if short:
                yield "answer", columns, name + 1 + bool(context)
            if not (p.content == "few" and p.n_distinct <= _MOST_CHOICES):
                yield "chat", columns, name + (0.0 if short else 1 + bool(context))

    def _context(self, text: Profile, answer: Profile) -> str | None:
        named = [
            p
            for p in self.asked
            if p.name not in (text.name, answer.name)
            and p.content not in ("empty", "constant")
            and (_name_score("context", p.name) or p.name.casefold() == "input")
        ]
        return max(named, key=lambda p: p.words).name if named else None


def _is_list_of_answers(p: Profile) -> bool:
    return p.content == "texts" and p.name.casefold() in ("answer", "answers")


_DAY = re.compile(r"(\d{4})-\d\d-(\d\d)")
"""Year and day of the month, which a text has as numbers however it writes the date."""


def _holds(text: str, value: str, *, numeric: bool) -> bool:
    """Return True if the text holds the value; a number of some digits, or a day, also in another way of writing it."""
    if len(value) > 2 and value.casefold() in text.casefold():
        return True
    if day := _DAY.fullmatch(value):
        return all(re.search(rf"(?<!\d)0?{int(part)}(?!\d)", text) for part in day.groups())
    digits = re.sub(r"\D", "", value)
    return numeric and len(digits) > 2 and digits in re.sub(r"(?<=\d)[.,'\s](?=\d)", "", text)


def _name_score(role: str, name: str) -> float:
    """Return how much a column's name speaks for a role: 3 its name, 2 its last word, 1 any word of it, else 0."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    known = _WORDS[role]
    if "".join(words) in known or (len(words) == 1 and words[0] in known):
        return 3.0
    if words and words[-1] in known:
        return 2.0
    return 1.0 if known & set(words) else 0.0


# What a column holds

Content = Literal["empty", "constant", "object", "texts", "date", "number", "id", "few", "free", "short"]
"""`texts`: lists of text · `few`: values that repeat, such as labels · `free`: texts of several words, mostly different
· `short`: text that is neither."""

MOST_CHARACTERS_OF_A_LABEL = 80
_MOSTLY = 0.9
_REPEATED = 0.8
_DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{4}/\d\d?/\d\d?.*|\d\d?[./-]\d\d?[./-]\d{2,4}.*|[A-Z][a-z]{2,8} \d\d?, \d{4}.*"
)
_NUMBER = re.compile(r"[-+]?[\d.,]*\d ?%?")
_IDEOGRAM = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Profile(NamedTuple):
    """One column of a table."""

    name: str
    content: Content
    n_distinct: int
    words: float
    """Mean number of words of the values that are not empty."""
    numeric: bool
    """True if the values are numbers."""


def profile_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Profile]:
    """Return what each column of the rows holds, in the order in which they first appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _profile(name, [row.get(name) for row in rows]) for name in names}


def as_object(value: Any) -> dict[str, Any] | None:
    """Return the JSON object that a value is or, as text, holds alone (also in a code fence); else None."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or "{" not in value:
        return None
    text = re.sub(r"^\s*```(?:json)?\s*\n(.*)\n\s*```\s*$", r"\1", value, flags=re.DOTALL)
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def as_text(value: Any) -> str:
    """Return a scalar as the text that stands for it in a table, without spaces around it."""
    return scalar_text(value).strip()


def _profile(name: str, values: Sequence[Any]) -> Profile:
    filled = [value for value in values if not is_blank(value)]
    texts = [as_text(value) for value in filled if not isinstance(value, list | dict)]
    counts = Counter(texts)
    n_words = sum(len(text.split()) + len(_IDEOGRAM.findall(text)) / 2 for text in texts)  # two ideograms are a word
    words = n_words / max(1, len(texts))
    numeric = bool(texts) and _share(_NUMBER, texts) >= _MOSTLY
    return Profile(name, _content(filled, texts, counts, words, numeric=numeric), len(counts), words, numeric)


def _content(
    filled: Sequence[Any], texts: Sequence[str], counts: Counter[str], words: float, *, numeric: bool
) -> Content:
    if not filled:
        return "empty"
    if sum(as_object(value) is not None for value in filled) >= _MOSTLY * len(filled):
        return "object"
    if len(texts) < len(filled):
        are_texts = all(isinstance(value, list) and all(isinstance(x, str) for x in value) for value in filled)
        return "texts" if are_texts else "short"
    if len(counts) == 1 and len(texts) > 1:
        return "constant"
    if _share(_DATE, texts) >= _MOSTLY:
        return "date"
    repeated = sum(n for n in counts.values() if n > 1) / len(texts)
    n_long = sum(len(text) > MOST_CHARACTERS_OF_A_LABEL for text in texts)
    label_like = n_long <= 0.02 * len(texts) and len(counts) <= len(texts) / 2
    if numeric:
        return "few" if label_like and len(counts) <= 12 else "id" if len(counts) == len(texts) else "number"
    if label_like and repeated >= _REPEATED:
        return "few"
    if words >= 3 or (words > 1.5 and repeated < 1 - _REPEATED):
        return "free"
    return "id" if len(counts) == len(texts) and words <= 1.1 else "short"


def _share(pattern: re.Pattern[str], texts: Sequence[str]) -> float:
    return sum(pattern.fullmatch(text) is not None for text in texts) / len(texts)
