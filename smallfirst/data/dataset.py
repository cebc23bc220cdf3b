"""Rows as immutable records (Message, Example, Dataset), and splits of them by content.

Equal texts, or rows of a group, are never on both sides. The texts of a label stand in the order of their hashes, and
the first ones are held out: the file's order and the task's name change nothing, every label is in each part in its
share, and rows added later move only the few at the borders.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from heapq import nsmallest
from typing import Literal, TypeVar

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import Record, fingerprint

R = TypeVar("R", bound=Record)
RowFormat = Literal["label", "labels", "target", "question", "prompt", "chat", "call", "text"]
"""text + label · text + labels · text + target (JSON) · question + answer · prompt + response · chat messages ·
messages + tools · text to continue."""


class Message(Record):
    """One turn of a conversation, as OpenAI's API writes it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Example(Record):
    """One row: what is asked and what the right answer is."""

    messages: tuple[Message, ...]
    """What is asked, oldest first; empty for text to continue."""
    answer: str
    """The gold label, canonical JSON, the response, or the text to continue; empty if there is no gold answer."""
    also: tuple[str, ...] = ()
    """Other answers that are as right."""
    shape: RowFormat
    path: str = ""
    line: int = 0
    """Line in that file, from 1."""
    group: str = ""
    """What the row shares with others: a template, source or customer; empty if it is not known."""
    source: str = ""
    """The model that gave the answer; empty for people's."""
    at: str = ""
    """When it was asked, in ISO 8601; empty if it is not known."""
    tenant: str = ""
    """Who asked; empty if it is not known."""
    tools: str = ""
    """Of a row with function calls: the functions as JSON (`conversations.read_functions`)."""
    tags: dict[str, str] = {}
    """Values of the columns named as tags (customer, channel, …), by column."""

    def __hash__(self) -> int:
        return hash((self.messages, self.answer, self.path, self.line))

    @property
    def text(self) -> str:
        """Content of the last user message."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.content
        return ""

    @property
    def place(self) -> str:
        """The row as file:line."""
        return f"{self.path or 'row'}:{self.line}"

    @property
    def golds(self) -> tuple[str, ...]:
        return (self.answer, *self.also)

    @property
    def asked(self) -> str:
        """The user's text; of a chat all turns but the system's; the text to continue. Splits compare it.

        Turns of different conversations with function calls are different requests, however alike they are.
        """
        if not self.messages:
            return self.answer
        if self.shape == "call":
            return f"{self.group} {self.text}"
        if self.shape != "chat":
            return self.text
        return "\n".join(m.content for m in self.messages if m.role != "system")

    @cached_property
    def folded(self) -> str:
        """What is asked, without its dress (`fold_text`)."""
        return fold_text(self.asked)

    @cached_property
    def key(self) -> str:
        """16 hex digits from the content alone: equal rows have equal keys wherever they stand."""
        content: list[object] = [[[m.role, m.content] for m in self.messages], self.answer]
        return fingerprint([*content, list(self.also)] if self.also else content)


class Dataset(Record):
    """Rows in file order."""

    name: str
    """Usually the file name."""
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def content_fingerprint(self) -> str:
        """16 hex digits that change when a row is added, removed or edited, not when rows move."""
        return fingerprint(sorted(example.key for example in self.examples))

    @property
    def system_message(self) -> str:
        """The system message with which every row begins; empty if they differ or one has none."""
        firsts = {e.messages[0].content if e.messages and e.messages[0].role == "system" else "" for e in self.examples}
        return firsts.pop() if len(firsts) == 1 else ""

    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({example.answer for example in self.examples}))

    def subset(self, name: str, examples: tuple[Example, ...]) -> Dataset:
        return Dataset(name=name, examples=examples)


def share_field_names(record: R) -> R:
    """Let a record of which there are many share the set of its fields with those alike: it is half of their memory."""
    names = record.__pydantic_fields_set__
    object.__setattr__(record, "__pydantic_fields_set__", _FIELD_NAMES.setdefault(frozenset(names), names))
    return record


_FIELD_NAMES: dict[frozenset[str], set[str]] = {}


def fold_text(text: str) -> str:
    """Return `text` without case, punctuation, spacing and Unicode variants; of punctuation alone, as it is."""
    if text.isascii():
        plain = text.lower()
        return " ".join(plain.translate(_ASCII_WORDS).split()) or " ".join(plain.split())
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _NO_WORD.sub(" ", plain).strip() or " ".join(plain.split())


_NO_WORD = re.compile(r"[\W_]+")
_ASCII_WORDS = {code: " " for code in range(128) if _NO_WORD.fullmatch(chr(code))}


class Splits(Record):
    """Three parts of one dataset, each in file order, with no text in two of them."""

    train: Dataset
    validation: Dataset
    test: Dataset


def split(data: Dataset, *, validation: float, test: float, salt: str = "") -> Splits:
    """Return the rows in three parts by shares in [0, 1], of each label the same; another `salt` gives another split.

    The test part depends on `test` only. A label's last text, and every text with a row that a model labelled where
    people labelled others, are to train on. Raise ConfigError for shares that leave nothing to train on.
    """
    _refuse_bad_share("validation", validation)
    _refuse_bad_share("test", test)
    if validation + test >= 1:
        raise ConfigError(
            f"validation {validation} and test {test} leave no rows to train on: their sum must be below 1"
        )
    part_of: dict[str, str] = {}
    for label, units in _by_label(data).items():
        offset = _draw("split", salt, f"label\0{label}") if label else 0.5
        *rest, _ = order = sorted(units, key=lambda unit: (_draw("split", salt, unit), unit))
        for unit, place in zip(rest if label else order, _places(order, units, offset), strict=False):
            part_of[unit] = "test" if place <= test else "validation" if place <= test + validation else "train"
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in data.examples:
        parts[part_of.get(_unit(example), "train")].append(example)
    return Splits(**{name: data.subset(f"{data.name}:{name}", tuple(rows)) for name, rows in parts.items()})


def sample_share(data: Dataset, share: float, salt: str = "") -> tuple[Dataset, Dataset]:
    """Return a share in [0, 1] of the rows, which holds those of any smaller share, and the rest."""
    _refuse_bad_share("share", share)
    sizes = Counter(map(_unit, data.examples))
    order = sorted(sizes, key=lambda unit: (_draw("share", salt, unit), unit))
    chosen = {unit for unit, place in zip(order, _places(order, sizes, 0.5), strict=True) if place <= share}
    taken = tuple(example for example in data.examples if _unit(example) in chosen)
    rest = tuple(example for example in data.examples if _unit(example) not in chosen)
    return data.subset(f"{data.name}:{share:g}", taken), data.subset(f"{data.name}:rest", rest)


def sample_rows(data: Dataset, n: int | None) -> Dataset:
    """Return at most `n` rows (None: all), those of the smallest content hashes, in file order.

    The sample holds that of any smaller `n`, and does not depend on the order of the file.
    """
    if n is None or n >= len(data):
        return data
    draws = [_draw("share", "large", _unit(example)) for example in data.examples]
    last = nsmallest(n, draws)[-1] if n else -1.0
    order = sorted((draw, data.examples[i].key, i) for i, draw in enumerate(draws) if draw <= last)
    return data.subset(data.name, tuple(data.examples[i] for i in sorted(i for _, _, i in order[:n])))


def _unit(example: Example) -> str:
    """Return what stays together: the group, or else the text without its dress."""
    return f"group\0{example.group}" if example.group else example.folded


def _by_label(data: Dataset) -> dict[str, dict[str, int]]:
    """Return the units with their numbers of rows by their most frequent label; empty where rows have no label.

    Units with a row that a model labelled are left out, unless it labelled all: then the rows are about that model.
    """
    by_people = any(not example.source for example in data.examples)
    models = {_unit(example) for example in data.examples if by_people and example.source}
    n_rows = Counter((_unit(e), e.answer if e.shape == "label" else "") for e in data.examples)
    total, usual = Counter[str](), dict[str, tuple[int, str]]()
    for (unit, label), n in n_rows.items():
        total[unit] += n
        usual[unit] = min(usual.get(unit, (0, "")), (-n, label))
    found: dict[str, dict[str, int]] = {}
    for unit, (_, label) in usual.items():
        if unit not in models:
            found.setdefault(label, {})[unit] = total[unit]
    return found


def _places(order: Sequence[str], sizes: Mapping[str, int], offset: float) -> Iterator[float]:
    """Yield the share of the rows up to each unit, of which all but the share `offset` counts.

    Of n single rows floor(n t + offset) have a place of at most t: rounded, or the right share on average over
    offsets that are drawn.
    """
    n, before = sum(sizes.values()), 0
    for unit in order:
        yield (before + sizes[unit] * (1 - offset)) / n
        before += sizes[unit]


def _draw(purpose: str, salt: str, unit: str) -> float:
    """Return a number in [0, 1), the same for the same unit, and independent of other purposes' draws."""
    digest = hashlib.sha256("\0".join((purpose, salt, unit)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits are exact in a float


def _refuse_bad_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name} must be a share between 0 and 1 (got {share})")
