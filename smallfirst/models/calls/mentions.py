"""What a conversation offers as the value of an argument: each value with the places that name it.

Values come from results and former calls, by the argument's name; from the texts, as one of the values that the
training rows have, as a date, time or number, as words that are capitalised or quoted, or as any phrase. Nothing is
made up: a value without a place is a usual one of a closed set, judged from words.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from smallfirst.data.conversations import ConversationTurn, from_text
from smallfirst.models.calls.dates import days_in, stated_day
from smallfirst.models.protocol import ValuePlace
from smallfirst.models.spans.values import TIME_FORMS, reads
from smallfirst.tasks.value_matching import lowered, normalize_value

MAX_PHRASE = 7
"""Most words of a phrase that may be a value."""
TOPIC_TURNS = 3
"""Turns of the user that an encoder reads."""
BEFORE = 25
"""Characters before a place that are looked at."""
_UPPER = "".join(character for character in map(chr, range(0x3000)) if character.isupper() or character.istitle())
_CAPITALISED = re.compile(
    rf"(?:\b\d+ )?\b[{_UPPER}][\w&'’-]*(?:\.(?=\w))?(?: (?:(?:of|the|and|de) |& )?[{_UPPER}0-9][\w&'’-]*)*"
)
PARTLY = 0.5
"""Least share of a value's words that a turn says, where it does not say them all."""
_LETTERS = re.compile(r"\w+")
_QUOTED = re.compile(r'["“]([^"”]{2,80})["”]')
_WORD = re.compile(r"[^\s,.;:?!]+(?:[.:,][^\s,.;:?!]+)*")
_BREAK = re.compile(r"[.;?!]\s")
_SIGNS = "".join(c for c in map(chr, range(0x24, 0x10000)) if unicodedata.category(c) == "Sc")
_AMOUNT = r"\d+(?:[.,'’\u00a0\u202f]\d+)*"
_NUMBER = re.compile(rf"(?<![\w.,])\d+(?:[.,]\d+)*(?!\w)|(?<=[{_SIGNS}])\d+(?:[.,]\d+)*")
_MONEY = re.compile(
    rf"[{_SIGNS}]\s?{_AMOUNT}|(?<![\w.,]){_AMOUNT}\s?(?:[{_SIGNS}]|(?:EUR|USD|GBP|CHF|JPY|PLN|SEK|zł|kr|euros?|円)\b)"
)
_COMMON = (
    "i i'm i'd i'll i've the a an do is are was what yes no yup ok okay sure please sorry can could would will how "
    "when which where who in at on to from for with and or but my your we our you it that this there hi hello thanks "
    "thank great good that's it's let make find get have"
)
_NO_VALUE = frozenset(_COMMON.split())
"""Words with which no value begins."""


class Mention(NamedTuple):
    """One place that names a value."""

    source: str
    """`result` and `call` by the argument's name, `result*` and `call*` by another one; `known` such a value said in a
    text; `listed` one of the training rows; `date`, `time`, `number`, `money`, `span`, `phrase`."""
    age: int
    """Turns back, 1 for the last one."""
    role: str
    """`user`, `assistant`, `result` or `call`."""
    start: int = 0
    """Where it begins in its turn; of a result the place of its object in the list."""
    before: str = ""
    """What stands before it, in lower case."""
    after: str = ""
    end: int = 0
    """Where it ends in a text."""


Candidates = dict[str, list[Mention]]
"""Mentions by value, which is written as JSON."""


class State:
    """A conversation as it is read for a call."""

    def __init__(self, text: str) -> None:
        self.turns = from_text(text)
        self.texts = [
            (turn.kind, turn.value, len(self.turns) - i)
            for i, turn in enumerate(self.turns)
            if turn.kind in ("user", "assistant") and isinstance(turn.value, str)
        ]
        """Role, text and age of what was said."""
        system = " ".join(str(turn.value) for turn in self.turns if turn.kind == "system")
        self.today: dt.date | None = stated_day(system)
        self.calls = [turn.value for turn in self.turns if turn.kind == "call" and isinstance(turn.value, dict)]
        self.last_call = next(
            (len(self.turns) - i for i in reversed(range(len(self.turns))) if self.turns[i].kind == "call"), 10**6
        )
        """Turns since the last call; many without one."""
        self._mentions = dict[str, list[tuple[Any, Mention]]]()
        self.fields = _fields(self.turns)
        """By key the values of results and former calls, with their places."""

    @property
    def topic(self) -> str:
        """The user's last turns, as one text."""
        return " ".join([text for role, text, _ in self.texts if role == "user"][-TOPIC_TURNS:])

    def last(self, role: str) -> str:
        """Return what a role said last; empty if it said nothing."""
        return next((text for kind, text, _ in reversed(self.texts) if kind == role), "")

    @property
    def n_characters(self) -> int:
        return sum(len(text) for _, text, _ in self.texts)

    @property
    def n_calls(self) -> int:
        return len(self.calls)

    def place(self, mention: Mention, value: Any) -> ValuePlace:
        """Return where a value stands, with the words that name it."""
        at = len(self.turns) - mention.age
        kinds = [turn.kind for turn in self.turns[: at + 1]]
        joined = sum(kind == "call" and before in ("assistant", "call") for before, kind in pairwise(kinds))
        role = {"result": "tool", "call": "assistant"}.get(mention.role, mention.role)
        start, end = (mention.start, mention.end) if mention.end else (0, 0)
        words = self.turns[at].value[start:end] if mention.end else str(value)
        return ValuePlace(message=at - joined, role=role, start=start, end=end, words=words)

    def said(self, form: str) -> list[tuple[Any, Mention]]:
        """Return what the texts say in a form: `date`, `time`, `time_pm`, `number`, `money`, `span` or `phrase`."""
        if form not in self._mentions:
            self._mentions[form] = [
                (value, _standing(form, age, role, low, start, end))
                for role, text, age in self.texts
                for low in [lowered(text)]
                for start, end, value in _said(text, form, self.today)
            ]
        return self._mentions[form]

    def listed(self, pattern: re.Pattern[str], forms: Mapping[str, Any], source: str) -> list[tuple[Any, Mention]]:
        """Return the values of a list that the texts name; `forms` has each by its words in lower case."""
        return [
            (forms[found[0]], _standing(source, age, role, low, *found.span()))
            for role, text, age in self.texts
            for low in [lowered(text)]
            for found in pattern.finditer(low)
        ]

    def partly(self, values: Sequence[str]) -> list[tuple[str, Mention]]:
        """Return the values of which a turn says at least half of the words, but not all in order.

        The place of such a mention is the share of the words in hundredths.
        """
        found = []
        words = [(value, frozenset(_LETTERS.findall(lowered(value)))) for value in values]
        for role, text, age in self.texts:
            low = lowered(text)
            said = frozenset(_LETTERS.findall(low)) - _NO_VALUE
            for value, own in words:
                share = len(own & said) / len(own) if len(own) > 1 else 0.0
                if share >= PARTLY and lowered(value) not in low:
                    found.append((value, Mention("partly", age, role, round(100 * share))))
        return found


def _standing(source: str, age: int, role: str, low: str, start: int, end: int) -> Mention:
    """Return the mention of a place in a text in lower case."""
    return Mention(source, age, role, start, low[max(0, start - BEFORE) : start], low[end : end + BEFORE], end)


def word_list(values: Sequence[str]) -> re.Pattern[str]:
    """Return what finds whole words of a list, the longest first, in a text in lower case."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(v) for v in sorted(values, key=len, reverse=True))})(?!\w)")


def known_strings(state: State, keys: Sequence[str]) -> list[tuple[Any, Mention]]:
    """Return where the texts say what results and former calls hold under one of these keys."""
    values = {lowered(value): value for key in keys for value, _ in state.fields.get(key, ()) if _is_words(value)}
    return state.listed(word_list(list(values)), values, "known") if values else []


def _is_words(value: object) -> bool:
    return isinstance(value, str) and len(value) > 1 and not re.fullmatch(r"true|false|[\d:-]+", value, re.IGNORECASE)


def _fields(turns: Sequence[ConversationTurn]) -> dict[str, list[tuple[Any, Mention]]]:
    found: dict[str, list[tuple[Any, Mention]]] = defaultdict(list)
    for i, turn in enumerate(turns):
        age = len(turns) - i
        if turn.kind == "call" and isinstance(turn.value, dict):
            for key, value in (turn.value.get("arguments") or {}).items():
                found[key].append((value, Mention("call", age, "call", 0, turn.value.get("name", ""))))
        elif turn.kind == "result":
            for place, (key, value) in _leaves(turn.value):
                found[key].append((value, Mention("result", age, "result", place)))
    return found


def _leaves(value: Any, place: int = 0, key: str = "") -> Iterator[tuple[int, tuple[str, Any]]]:
    """Yield every scalar of a result by its nearest key, with the place of the object in its list."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _leaves(one, place, name)
    elif isinstance(value, list):
        for i, one in enumerate(value):
            yield from _leaves(one, i, key)
    elif key and value is not None:
        yield place, (key, value)


def _said(text: str, form: str, today: dt.date | None) -> Iterator[tuple[int, int, Any]]:
    if form == "date":
        yield from days_in(text, today)
    elif form in TIME_FORMS:
        yield from reads(text, form)
    elif form == "number":
        yield from _numbers(text)
    elif form == "money":
        yield from ((*found.span(), found[0]) for found in _MONEY.finditer(text))
    elif form == "span":
        for found in _QUOTED.finditer(text):
            yield *found.span(1), found[1]
        for found in _CAPITALISED.finditer(text):
            start, end = found.span()
            while start < end and (first := text[start:end].split(" ")[0]).lower() in _NO_VALUE:
                start = min(end, start + len(first) + 1)
            if start < end:
                yield start, end, text[start:end]
    else:
        yield from _phrases(text)


def _numbers(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield whole numbers of figures, written without groups and with a point."""
    for found in _NUMBER.finditer(text):
        read: Any = normalize_value(found[0], "number")
        if read[0] == "number":
            yield *found.span(), f"{read[1]:f}"


def _phrases(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield every run of at most MAX_PHRASE words without a break inside it."""
    words = [found.span() for found in _WORD.finditer(text)]
    for i, (start, _) in enumerate(words):
        for _, end in words[i : i + MAX_PHRASE]:
            if _BREAK.search(text, start, end):
                break
            yield start, end, text[start:end]
