"""What stands in a slot of a template: the case, a choice, a date, a number, an id; and what to call it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from smallfirst.data.importers.constant_text import tokens, varies_by_nature
from smallfirst.records import Record
from smallfirst.traffic.templates.dates import is_date
from smallfirst.traffic.templates.template import Template

SlotKind = Literal["text", "choice", "date", "number", "id", "example"]
MOST_CHOICES = 12
_NEARLY_ALL = 0.95
_NUMBER = re.compile(r"[-+]?\d[\d.,]*")
_LABEL = re.compile(r"([A-Za-z][\w \-']{0,40}?)[\"'*_]*\s*[:=>]+[\s\"'`*<]*$")
_HEADING = re.compile(r"[#<\[*=]+\s*([A-Za-z][\w \-]{0,30}?)\s*[>\]*=:]*\s*$")
_MOST_WORDS = 3


class MinedSlot(Record):
    """A slot of a template, and what was found in it."""

    name: str
    """From the words before it, such as message, ticket or channel; text for a whole message."""
    kind: SlotKind
    """text: different in most requests; example: of a solved example that changes with the requests."""
    n_values: int
    """Different values in the requests looked at."""
    values: tuple[str, ...]
    """The most frequent ones: all of a choice, else a few."""


def describe_slots(template: Template, values: Sequence[tuple[str, ...]]) -> tuple[MinedSlot, ...]:
    """Return the slots of a template; `values` are those of some requests."""
    columns = list(zip(*values, strict=True))
    places = [(turn, i) for turn in range(len(template.turns)) for i in range(template.turns[turn].text.n_slots)]
    names: list[str] = []
    slots = []
    n_examples = len(template.turns) - 1 if template.turns[-1].role == "user" else len(template.turns)
    for (turn, i), column in zip(places, columns, strict=True):
        counts = Counter(column)
        is_example = 0 < turn < n_examples and any(t.role == "assistant" for t in template.turns)
        kind: SlotKind = "example" if is_example else slot_kind(counts)
        role, pieces = template.turns[turn].role, template.turns[turn].text.pieces
        found = "" if not any(pieces) else _name(pieces[i])
        is_case = kind == "text" and turn == len(template.turns) - 1
        name = _unique(found or ("text" if is_case else f"{role}_{kind}"), names)
        names.append(name)
        shown = MOST_CHOICES if kind == "choice" else 3
        slots.append(
            MinedSlot(name=name, kind=kind, n_values=len(counts), values=tuple(v for v, _ in counts.most_common(shown)))
        )
    return tuple(slots)


def slot_kind(counts: Counter[str]) -> SlotKind:
    """Return what values are, by what most of them look like."""
    n = counts.total()
    if sum(k for value, k in counts.items() if is_date(value.strip())) >= _NEARLY_ALL * n:
        return "date"
    if len(counts) <= MOST_CHOICES and n >= 5 * len(counts) and max(map(len, counts)) <= 60:
        return "choice"
    if sum(k for value, k in counts.items() if _NUMBER.fullmatch(value)) >= _NEARLY_ALL * n:
        return "number"
    return "id" if sum(k for value, k in counts.items() if is_id(value)) >= _NEARLY_ALL * n else "text"


def is_id(value: str) -> bool:
    """True for a word with a digit in it, such as a ticket's or a request's."""
    one_word = bool(value) and len(value) <= 64 and not any(map(str.isspace, value))
    return one_word and any(map(varies_by_nature, tokens(value)))


def _name(before: str) -> str:
    """Return a name from the constant text before a slot; empty if it names nothing."""
    line = before.rstrip().rpartition("\n")[2]
    found = _LABEL.search(line + before[len(before.rstrip()) :].replace("\n", "")) or _HEADING.search(line)
    if found is None:
        return ""
    words = re.findall(r"[a-z0-9]+", found[1].lower())
    return "_".join(words) if len(words) <= _MOST_WORDS else ""


def _unique(name: str, taken: Sequence[str]) -> str:
    return name if name not in taken else next(f"{name}_{i}" for i in range(2, 999) if f"{name}_{i}" not in taken)
