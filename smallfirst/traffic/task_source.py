"""Where a task was found: templates of its prompts, slots that make its text, the format of its answers, its teacher.

A template is constant text around slots in each message of a prompt. `discover` writes `source.json` beside the task's
`task.yaml`; `learn` and `take-over` read it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from smallfirst.base.records import Record, fingerprint
from smallfirst.traffic.answer_format import AnswerFormat, FormatCheck
from smallfirst.traffic.wire.messages import Prompt


class TextPattern(Record):
    """Constant pieces of one message, with a slot between each two of them."""

    pieces: tuple[str, ...]
    """At least one; the message is pieces[0], slot, pieces[1], slot, …, pieces[-1]. The outer ones may be empty."""

    @property
    def n_slots(self) -> int:
        return len(self.pieces) - 1

    def values(self, text: str) -> tuple[str, ...] | None:
        """Return what stands in the slots, of each the shortest that fits; None if the text does not follow."""
        return values_between(self.pieces, text)


class TurnPattern(Record):
    """One message of a template."""

    role: str
    """system, user or assistant; an assistant's message is a solved example."""
    text: TextPattern


class Template(Record):
    """What all prompts of one kind share."""

    turns: tuple[TurnPattern, ...]
    """The messages, oldest first."""
    tools: str = ""
    """As in `Prompt.tools`."""
    response_format: str = ""
    """As in `Prompt.response_format`."""

    @property
    def id(self) -> str:
        """16 hex digits: equal templates, equal ids; another wording is another template."""
        return fingerprint(self.model_dump(mode="json"))

    @property
    def n_slots(self) -> int:
        return sum(turn.text.n_slots for turn in self.turns)

    def values(self, prompt: Prompt) -> tuple[str, ...] | None:
        """Return what stands in the slots of all messages, in order; None if the prompt does not follow it."""
        if prompt.has_media or prompt.tools != self.tools or prompt.response_format != self.response_format:
            return None
        if len(prompt.turns) != len(self.turns):
            return None
        values: tuple[str, ...] = ()
        for pattern, turn in zip(self.turns, prompt.turns, strict=True):
            found = pattern.text.values(turn.text) if pattern.role == turn.role else None
            if found is None:
                return None
            values += found
        return values


MIN_CONSTANT_CHARACTERS = 20
"""Fewest characters that prompts must share for these to be a template."""
MIN_SHARE = 0.8
"""Least share of prompts that must follow a template."""
_SAMPLE = 120
_TOKEN = re.compile(r"[^\W_]+|\n+|[^\S\n]+|[\W_]")
_DAYS = "monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun"
_MONTHS = "january february march april may june july august september october november december"
_SHORT_MONTHS = "jan feb mar apr jun jul aug sep sept oct nov dec"
_CALENDAR = frozenset(f"{_DAYS} {_MONTHS} {_SHORT_MONTHS}".split())
_FOLDED = "\0"
_NEARLY_ALL = 0.99
_LEAST_CHARACTERS = 8
_MARKS = re.escape('\n"`<>[](){}#=|„“”«»')
_MARK = re.compile(f"[:{_MARKS}]")
_AFTER_MARK = re.compile(rf".*[:{_MARKS}]\s*", re.DOTALL)
_CASE_END = re.compile(rf"[\w \t.?!,;']*(?=[{_MARKS}]|->|$)")
_JOINTS = frozenset("-/.,: ")
_LOOKED_AT = 50
_MOST_WORDS_OF_A_CASE = 2
"""Words that all cases may begin with; more are the prompt's."""

Wanted = Callable[[str], bool]


def tokens(text: str) -> list[str]:
    """Return words, runs of white space and single other characters, which together are the text."""
    return _TOKEN.findall(text)


def varies_by_nature(token: str) -> bool:
    """True for what dates, times, numbers and ids are made of: anything with a digit, names of days and months."""
    return token.lower() in _CALENDAR if token.isalpha() else any(map(str.isdigit, token))


def has_mark(text: str) -> bool:
    """True if something in a text sets parts of it apart, such as a colon, a line break, quotes or brackets."""
    return _MARK.search(text) is not None


def values_between(pieces: Sequence[str], text: str) -> tuple[str, ...] | None:
    """Return what stands between the pieces, of each the shortest that fits; None if the text does not follow them."""
    if len(pieces) == 1:
        return () if text == pieces[0] else None
    at, end = len(pieces[0]), len(text) - len(pieces[-1])
    if at > end or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return None
    values = []
    for piece in pieces[1:-1]:
        found = text.find(piece, at, end)
        if found < 0:
            return None
        values.append(text[at:found])
        at = found + len(piece)
    return (*values, text[at:end])


def find_template(prompts: Sequence[str]) -> tuple[str, ...] | None:
    """Return the constant pieces around the case that most prompts follow; None if they share no constant text."""
    different = list(dict.fromkeys(prompts))
    if len(different) < 3:
        return None
    step = max(1, len(different) // _SAMPLE)
    for share in (1.0, MIN_SHARE):  # the second is for prompts of which a few follow no template
        pieces = constant_pieces(different[::step][:_SAMPLE], share)
        n_followed = sum(values_between(pieces, prompt) is not None for prompt in prompts)
        n_constant = sum(len(piece.strip()) for piece in pieces)
        if n_constant >= MIN_CONSTANT_CHARACTERS and n_followed >= MIN_SHARE * len(prompts):
            return pieces
    return None


def constant_pieces(texts: Sequence[str], share: float = _NEARLY_ALL) -> tuple[str, ...]:
    """Return the constant text around what varies, as pieces with a slot between each two; equal texts are one piece.

    At least `share` of the texts should follow. The outer pieces may be empty.
    """
    folded = [_fold(text) for text in texts]
    pieces = _unfolded(_pieces([text for text, _ in folded], 0, share), folded)
    return _joined(pieces, texts) if len(pieces) > 1 else tuple(pieces)


def _fold(text: str) -> tuple[str, list[str]]:
    """Return the text with one mark in place of each date's or number's part, and these parts."""
    words = tokens(text)
    varying = [word for word in words if word == _FOLDED or varies_by_nature(word)]
    return "".join(_FOLDED if word == _FOLDED or varies_by_nature(word) else word for word in words), varying


def _unfolded(pieces: Sequence[str], folded: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return the pieces with the parts of dates and numbers that are the same in nearly all texts; others are slots."""
    found: list[list[list[str]]] = []  # per text, per piece, the parts that stand in it
    for text, varying in folded:
        values = values_between(pieces, text)
        if values is None:
            continue
        at, parts = 0, []
        for piece, value in zip(pieces, (*values, ""), strict=True):
            n = piece.count(_FOLDED)
            parts.append(varying[at : at + n])
            at += n + value.count(_FOLDED)
        found.append(parts)
    unfolded: list[str] = []
    for i, piece in enumerate(pieces):
        first, *rest = piece.split(_FOLDED)
        unfolded.append(first)
        for k, after in enumerate(rest):
            part, n = Counter(parts[i][k] for parts in found).most_common(1)[0] if found else ("", 0)
            if found and n >= _NEARLY_ALL * len(found):
                unfolded[-1] += part + after
            else:
                unfolded.append(after)
    return unfolded


# Three passes: long runs of words, short ones with a mark such as a colon, paragraph breaks.
_PASSES: tuple[tuple[int, Wanted], ...] = (
    (5, lambda run: len(run.replace(_FOLDED, "0000").strip()) >= _LEAST_CHARACTERS and any(map(str.isalpha, run))),
    (3, lambda run: has_mark(run) and any(map(str.isalpha, run))),
    (1, lambda run: run.count("\n") >= 2),
)


def _pieces(texts: list[str], level: int, share: float = _NEARLY_ALL) -> list[str]:
    """Return constant pieces with a slot between each two of them; the first and the last may be empty."""
    common, n = Counter(texts).most_common(1)[0]
    if n >= share * len(texts):
        return [common]
    first = _beginning(texts, share)
    texts = [text[len(first) :] for text in texts if text.startswith(first)]
    last = _beginning([text[::-1] for text in texts], share)[::-1]
    texts = [text[: len(text) - len(last)] for text in texts if text.endswith(last)]
    inner: list[str] = []
    while level < len(_PASSES) and not inner:
        inner = _anchors(texts, share, *_PASSES[level])
        level += not inner
    gaps = [gap for text in texts if (gap := values_between(["", *inner, ""], text))] if inner else []
    if not gaps:
        return [first, last]
    found = [first]
    for between, after in zip(zip(*gaps, strict=True), (*inner, last), strict=True):
        pieces = _pieces(list(between), level)
        found[-1] += pieces[0]
        found += pieces[1:]
        found[-1] += after
    return found


def _beginning(texts: Sequence[str], share: float) -> str:
    """Return what `share` of the texts begin with, up to the end of a token."""
    ordered = sorted(texts)
    n = math.ceil(share * len(ordered))
    ends = [(ordered[i], ordered[i + n - 1]) for i in range(len(ordered) - n + 1)]
    low, high = max(ends, key=lambda pair: _n_common(*pair))
    common = low[: _n_common(low, high)]
    if len(common) < max(len(low), len(high)):
        cut = tokens(common)
        whole = tokens(low)[: len(cut)] == cut and tokens(high)[: len(cut)] == cut
        common = "".join(cut if whole else cut[:-1])
    return common


def _n_common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _anchors(texts: Sequence[str], share: float, size: int, wanted: Wanted) -> list[str]:
    """Return pieces that stand in nearly all texts in this order, made of runs that each text has equally often."""
    split = [tokens(text) for text in texts]
    texts_by_count: Counter[tuple[str, int]] = Counter()
    for words in split:
        texts_by_count.update(Counter(_runs(words, size)).items())
    least = share * len(texts)
    common = {run for (run, _), n in texts_by_count.items() if n >= least and wanted(run)}
    if not common:
        return []
    words = max(split, key=lambda words: sum(run in common for run in _runs(words, size)))
    return _in_order(_stretches(words, size, common), texts, least)


def _runs(words: Sequence[str], size: int) -> list[str]:
    return ["".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def _stretches(words: Sequence[str], size: int, common: set[str]) -> list[str]:
    """Return the stretches of `words` that are made of common runs."""
    stretches: list[str] = []
    end = -1
    for i, run in enumerate(_runs(words, size)):
        if run not in common:
            continue
        if i < end:
            stretches[-1] += "".join(words[end : i + size])
        else:
            stretches.append(run)
        end = i + size
    return stretches


def _in_order(pieces: list[str], texts: Sequence[str], least: float) -> list[str]:
    """Return the pieces without those that are not found after the one before; of two in conflict the shorter goes."""
    while pieces:
        missed: Counter[int] = Counter()
        for text in texts:
            at = 0
            for i, piece in enumerate(pieces):
                found = text.find(piece, at)
                if found < 0:
                    missed[i] += 1
                    break
                at = found + len(piece)
        if len(texts) - missed.total() >= least:
            break
        i = missed.most_common(1)[0][0]
        del pieces[i - 1 if i and len(pieces[i - 1]) < len(pieces[i]) else i]
    return pieces


# Where a slot begins and ends


def _joined(pieces: list[str], texts: Sequence[str]) -> tuple[str, ...]:
    """Return the pieces with slots widened to whole cases and dates, and without pieces that say nothing."""
    pieces = _without_silent(pieces)
    values = [found for text in texts[:_LOOKED_AT] if (found := values_between(pieces, text))]
    is_number = [_are_numbers(slot) for slot in zip(*values, strict=True)]
    last = len(pieces) - 1
    trimmed = []
    for i, piece in enumerate(pieces):
        if i > 0:
            piece = _without_number(piece) if is_number[i - 1] else _without_case_before(piece)
        if i < last:
            piece = _without_number(piece[::-1])[::-1] if is_number[i] else _without_case_after(piece)
        trimmed.append(piece)
    return tuple(_without_silent(trimmed))


def _without_silent(pieces: Sequence[str]) -> list[str]:
    """Return the pieces without inner ones that only join the parts of a date or number."""
    inner = [piece for piece in pieces[1:-1] if ": " in piece or not _JOINTS.issuperset(piece)]
    return [pieces[0], *inner, pieces[-1]]


def _are_numbers(values: Sequence[str]) -> bool:
    """True if (nearly) all values are dates, times, numbers or ids."""
    n = sum(bool(value) and all(map(_is_of_number, tokens(value))) and len(value) < 40 for value in values)
    return n >= 0.9 * len(values)


def _is_of_number(token: str) -> bool:
    return varies_by_nature(token) or token in _JOINTS


def _without_number(piece: str) -> str:
    """Return a piece without the rest of a number or date at its beginning."""
    words = tokens(piece)
    at = 0
    for i, word in enumerate(words):
        if varies_by_nature(word) or varies_by_nature(word[::-1]):
            at = i + 1
        elif word not in _JOINTS:
            break
    return "".join(words[at:])


def _without_case_after(piece: str) -> str:
    """Return a piece before a slot without words that all cases begin with."""
    marked = _AFTER_MARK.match(piece)
    rest = piece[marked.end() :] if marked else piece
    return piece[: len(piece) - len(rest)] if 0 < len(rest.split()) <= _MOST_WORDS_OF_A_CASE else piece


def _without_case_before(piece: str) -> str:
    """Return a piece after a slot without the words and the full stop that all cases end with."""
    found = _CASE_END.match(piece)
    end = found.group() if found else ""
    return piece[len(end.rstrip()) :] if 0 < len(end.split()) <= _MOST_WORDS_OF_A_CASE else piece


FILE_NAME = "source.json"


class Slot(Record):
    """A slot of a template."""

    name: str
    """Name of the field, such as text, ticket or date."""
    use: Literal["text", "ignored"] = "text"
    """ignored: it does not belong to the case, as a date or a request's number does not."""


class TaskTemplate(Record):
    """One wording of the task's prompt."""

    template: Template
    slots: tuple[Slot, ...]
    """One for each slot of the template, in order."""
    answer_format: AnswerFormat | None = None
    """Format of its answers, where it is not the task's."""

    def text(self, prompt: Prompt) -> str | None:
        """Return the case that a prompt asks about; None if it follows another template.

        Several slots are written one to a line, as `name: value`.
        """
        values = self.template.values(prompt)
        if values is None:
            return None
        used = [(slot.name, value) for slot, value in zip(self.slots, values, strict=True) if slot.use == "text"]
        if len(used) == 1:
            return used[0][1]
        return "\n".join(f"{name}: {value}" for name, value in used)


class Teacher(Record):
    """The model whose answers the task was learnt from."""

    model: str
    """As the responses name it."""
    licence: str = ""
    """Terms of its answers as the settings give them; empty where they say nothing."""
    training_allowed: bool = True
    """False: its terms forbid training on its answers, which are then used for measuring alone."""


class TaskSource(Record):
    """A recurring task in recorded traffic."""

    name: str
    templates: tuple[TaskTemplate, ...]
    """The wordings in use, newest last."""
    answer_format: AnswerFormat
    format_check: FormatCheck | None = None
    """How faithfully the format gives the recorded answers back; one that is not exact blocks the take-over."""
    models: tuple[str, ...] = ()
    """Models that the application asks for with these prompts."""
    teacher: Teacher
    foretold_share: tuple[float, float, float] | None = None
    """Share of its requests that can move: estimate, and the ends of its 95 % interval."""

    @classmethod
    def of(cls, folder: Path) -> TaskSource | None:
        """Return the source of the task in a folder; None if it was not found in traffic."""
        path = folder / FILE_NAME
        return cls.load(path) if path.exists() else None
