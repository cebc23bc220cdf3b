"""Find the templates in traffic: the prompts that programs wrote, what stays the same in them, and what varies.

One pass: a request is compared with the templates found so far; those that follow none are kept, up to a bound, and
looked through together when there are enough. What people wrote themselves, and conversations, share no template.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

from smallfirst.traffic.discovery.templates import constant_pieces, has_mark, tokens, varies_by_nature, wordings
from smallfirst.traffic.task_source import Template, TurnPattern
from smallfirst.traffic.wire import Prompt, Turn

MIN_REQUESTS = 20
"""Fewest requests that must follow a template."""
_POOL, _POOL_CHARACTERS = 12_000, 60_000_000
"""Most requests without a template, and most characters of them, that are kept at a time."""
_SAMPLE = 4_000
"""Requests of one shape that are looked through together."""
_SAMPLE_CHARACTERS = 12_000_000
_ALIGNED, _ALIGNED_CHARACTERS = 120, 2_000_000
"""Requests of a wording that are compared word by word; fewer if they are long."""
_LEAST_ALIGNED = 20
_DESCRIBED = 2_000
_LEAST_WORDS, _LEAST_CHARACTERS = 4, 20
_STOCK = re.compile(r"\s*you are (?:a|an) [\w, ]{0,60}assistant\W*", re.IGNORECASE)
"""A system prompt that gives no instruction."""
_LONG = 60
"""Characters of constant text that need no mark, such as a colon, between them and the case."""
T = TypeVar("T")
_Shape = tuple[tuple[str, ...], str, str]
"""Roles, tools and response format: what prompts of one template share before their texts are looked at."""
_FOLLOW, _CONTINUE = 0.9, 0.5
_MOST_MESSAGES = 8
"""Most texts of one message by which requests that share little else are told apart."""
_LEAST_CASES = 5
_MOST_ROUNDS = 4


class _Request(NamedTuple, Generic[T]):
    """A request as far as templates are concerned."""

    request: T
    at: datetime
    prompt: Prompt
    continues: bool
    """True if it continues an earlier request."""


@dataclass
class _Found(Generic[T]):
    """A template while requests are being read."""

    template: Template
    members: list[T] = field(default_factory=list)
    values: list[tuple[int, ...]] = field(default_factory=list)
    """Hashes of what stands in the slots, of _DESCRIBED members drawn at random."""
    n_continuing: int = 0

    def add(self, asked: _Request[T], values: tuple[str, ...]) -> None:
        self.members.append(asked.request)
        self.n_continuing += asked.continues
        n = len(self.members)
        place = len(self.values) if n <= _DESCRIBED else random.randrange(n)
        if place < _DESCRIBED:
            self.values[place : place + 1] = [tuple(map(hash, values))]


class Miner(Generic[T]):
    """Templates of the requests that were added, each a T."""

    def __init__(self, min_requests: int = MIN_REQUESTS) -> None:
        self.min_requests = min_requests
        self._found: dict[_Shape, list[_Found[T]]] = defaultdict(list)
        self._pool: list[_Request[T]] = []
        self._pool_characters = 0
        self._conversations = Conversations()

    def add(self, request: T, at: datetime, prompt: Prompt) -> None:
        """Take a request; prompts with images and those of agents that report what a tool returned are passed over."""
        continues = self._conversations.note(prompt)
        if prompt.has_media or any(turn.role == "tool" for turn in prompt.turns):
            return
        asked = _Request(request, at, prompt, continues)
        if not self._match(asked):
            self._pool.append(asked)
            self._pool_characters += _length(prompt)
            if len(self._pool) >= _POOL or self._pool_characters >= _POOL_CHARACTERS:
                self._learn()
                random.Random(0).shuffle(self._pool)
                kept = min(_POOL // 2, len(self._pool) * _POOL_CHARACTERS // (2 * max(self._pool_characters, 1)))
                del self._pool[kept:]
                self._pool_characters = sum(_length(one.prompt) for one in self._pool)

    def templates(self) -> dict[Template, list[T]]:
        """Return the templates that enough requests follow, the most frequent first, with these in their order."""
        self._learn()
        found = [one for group in self._found.values() for one in group if self._is_template(one)]
        return {one.template: one.members for one in sorted(found, key=lambda one: -len(one.members))}

    def _match(self, asked: _Request[T]) -> bool:
        for found in self._found.get(_shape(asked.prompt), ()):
            values = found.template.values(asked.prompt)
            if values is not None:
                found.add(asked, values)
                return True
        return False

    def _learn(self) -> None:
        """Look through the requests without a template until no more templates are found."""
        for _ in range(_MOST_ROUNDS):
            shapes: dict[_Shape, list[_Request[T]]] = defaultdict(list)
            for asked in self._pool:
                shapes[_shape(asked.prompt)].append(asked)
            new = False
            for shape, group in shapes.items():
                for template in self._templates_of(group):
                    self._found[shape].append(_Found(template))
                    new = True
                self._found[shape].sort(key=lambda one: -_constant_characters(one.template))
            if not new:
                return
            self._pool = [asked for asked in self._pool if not self._match(asked)]

    def _templates_of(self, group: Sequence[_Request[T]]) -> Iterator[Template]:
        if len(group) < self.min_requests:
            return
        sample = _sample(group, _SAMPLE, _SAMPLE_CHARACTERS // _mean_length([asked.prompt for asked in group]))
        least = max(4, min(self.min_requests // 2, round(self.min_requests * len(sample) / len(group))))
        for members in wordings([asked.prompt for asked in sample], least):
            yield from self._templates_of_wording([sample[i] for i in members], least)

    def _templates_of_wording(self, asked: Sequence[_Request[T]], least: int) -> Iterator[Template]:
        template = _aligned([one.prompt for one in asked])
        times = [one.at for one in asked]
        template = with_dates_open(template, min(times), max(times))
        if template.n_slots == 0 or not is_constant_enough(template):
            for part in _by_message(asked, least):
                yield from self._templates_of_wording(part, least)
            return
        values = [template.values(one.prompt) for one in asked]
        followers = [(one, value) for one, value in zip(asked, values, strict=True) if value is not None]
        if len(followers) < _FOLLOW * len(asked):
            return
        groups = versions(template, [v for _, v in followers], [one.at for one, _ in followers], least)
        if not groups:
            yield template
        for group in groups:
            if len(group) >= least:
                yield from self._templates_of_wording([followers[i][0] for i in group], least)

    def _is_template(self, found: _Found[T]) -> bool:
        """True unless it has too few requests or cases, or is the system prompt of an assistant to converse with."""
        n = len(found.members)
        if n < self.min_requests or len(set(found.values)) < _LEAST_CASES or found.n_continuing > _CONTINUE * n:
            return False
        roles = [turn.role for turn in found.template.turns for _ in range(turn.n_slots)]
        for role, column in zip(roles, zip(*found.values, strict=True), strict=True):
            if role == "assistant" and len(set(column)) > len(column) / 2:
                return False
        return not self._conversations.starts_them(found.template)


def _shape(prompt: Prompt) -> _Shape:
    return tuple(turn.role for turn in prompt.turns), prompt.tools, prompt.response_format


def _by_message(asked: Sequence[_Request[T]], least: int) -> list[list[_Request[T]]]:
    """Return requests apart by one of their messages, where a few texts of it are those of nearly all."""
    for i in range(len(asked[0].prompt.turns)):
        by_text: dict[str, list[_Request[T]]] = defaultdict(list)
        for one in asked:
            by_text[one.prompt.turns[i].text].append(one)
        groups = [group for group in by_text.values() if len(group) >= least]
        if 1 < len(groups) <= _MOST_MESSAGES and sum(map(len, groups)) >= _FOLLOW * len(asked):
            return groups
    return []


def _aligned(prompts: Sequence[Prompt]) -> Template:
    """Return what these prompts share."""
    sample = _sample(prompts, _ALIGNED, max(_LEAST_ALIGNED, _ALIGNED_CHARACTERS // _mean_length(prompts)))
    turns = tuple(
        TurnPattern(role=sample[0].turns[i].role, pieces=constant_pieces([prompt.turns[i].text for prompt in sample]))
        for i in range(len(sample[0].turns))
    )
    return Template(turns=turns, tools=sample[0].tools, response_format=sample[0].response_format)


def is_constant_enough(template: Template) -> bool:
    """True if there are several constant words, set apart from the case by a mark, another message or their number."""
    pieces = [piece for turn in template.turns for piece in turn.pieces]
    words = [token for piece in pieces for token in tokens(piece) if token.isalpha()]
    if (
        len(words) < _LEAST_WORDS
        or _constant_characters(template) < _LEAST_CHARACTERS
        or _STOCK.fullmatch("".join(pieces))
    ):
        return False
    if len(template.turns) > 1 or _constant_characters(template) >= _LONG:
        return True
    return any(map(has_mark, pieces))


def _sample(items: Sequence[T], *most: int) -> Sequence[T]:
    n = min(most)
    return items if len(items) <= n else random.Random(0).sample(items, n)


def _mean_length(prompts: Sequence[Prompt]) -> int:
    return 1 + sum(map(_length, prompts)) // len(prompts)


def _length(prompt: Prompt) -> int:
    return sum(len(turn.text) for turn in prompt.turns)


def _constant_characters(template: Template) -> int:
    return sum(len(piece.strip()) for turn in template.turns for piece in turn.pieces)


K = TypeVar("K")
_MOST_VERSIONS = 4
_LEAST_SHARE = 0.03
_LEAST_REPLACED = 3
"""Fewest requests of a version that begins just before the log ends."""
_OVERLAP = 0.02


def versions(
    template: Template, values: Sequence[tuple[str, ...]], at: Sequence[datetime], least: int
) -> list[list[int]]:
    """Return the indices of the requests of each version; empty if there is one version.

    A slot with up to four values, no dates or numbers, holds words of the prompt if the values replace each other in
    time, or if it stands within a sentence rather than after a mark such as a colon.
    """
    pieces = [(turn.pieces, i) for turn in template.turns for i in range(turn.n_slots)]
    for (around, i), column in zip(pieces, zip(*values, strict=True), strict=True):
        if groups := _few(column, _LEAST_REPLACED):
            if all(varies_by_nature(token) or not token.isalnum() for value in groups for token in tokens(value)):
                continue
            times = [[at[k] for k in group] for group in groups.values()]
            in_sentence = bool(around[i].strip()) and not has_mark(around[i].rstrip(" ")[-1:])
            is_frequent = all(len(group) >= max(least, _LEAST_SHARE * len(column)) for group in groups.values())
            if (in_sentence and is_frequent) or _replace_each_other(times):
                return list(groups.values())
    return []


def _few(keys: Sequence[K], least: float) -> dict[K, list[int]]:
    """Return the indices of each key; empty if there is one, or more than a few, or one is rarer than `least`."""
    groups: dict[K, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
        if len(groups) > _MOST_VERSIONS:
            return {}
    return groups if len(groups) > 1 and all(len(group) >= least for group in groups.values()) else {}


def _replace_each_other(times: Sequence[Sequence[datetime]]) -> bool:
    """True if each group ends, but for a few stragglers, before the next begins."""
    ordered = sorted((sorted(group) for group in times), key=lambda group: group[len(group) // 2])
    for earlier, later in pairwise(ordered):
        n = min(len(earlier), len(later))
        spare = int(_OVERLAP * n)
        if earlier[-1 - spare] > later[spare]:
            return False
    return True


_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = re.compile(
    r"(?:\b(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?,? )?\b(?:(?P<y1>\d{4})[-/.]\d\d?[-/.]\d\d?"
    rf"|\d\d?[-/.]\d\d?[-/.](?P<y2>\d{{4}})|\d\d?(?:st|nd|rd|th)?\.? {_MONTH},? (?P<y3>\d{{4}})"
    rf"|{_MONTH} \d\d?(?:st|nd|rd|th)?,? (?P<y4>\d{{4}}))(?!\d)"
    r"(?:[T ,]*(?:at )?\d\d?:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[ap]m)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?)?",
    re.IGNORECASE,
)


def with_dates_open(template: Template, first: datetime, last: datetime) -> Template:
    """Return the template with a slot for each date in its constant text that lies in the years of its requests."""
    turns = []
    for turn in template.turns:
        pieces = [part for piece in turn.pieces for part in _between_dates(piece, first.year, last.year)]
        turns.append(turn.model_copy(update={"pieces": tuple(pieces)}))
    return template.model_copy(update={"turns": tuple(turns)})


def _between_dates(piece: str, first: int, last: int) -> Iterator[str]:
    """Yield the text between the dates of these years in a piece."""
    at = 0
    for found in _DATE.finditer(piece):
        if any(year and first <= int(year) <= last for year in found.groups()):
            yield piece[at : found.start()]
            at = found.end()
    yield piece[at:]


_CONTINUED, _LEAST = 0.02, 2
"""Share and number of a system prompt's requests that continue an earlier one where people converse under it."""


class Conversations:
    """Requests seen, as hashes."""

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._by_system: Counter[int] = Counter()
        self._continued: Counter[int] = Counter()

    def note(self, prompt: Prompt) -> bool:
        """Take a request; return True if it is an earlier one with its answer and another question after it."""
        turns = prompt.turns
        continues = len(turns) > 2 and hash(turns[:-2]) in self._asked
        if turns[0].role == "system":
            system = hash(turns[0])
            self._by_system[system] += 1
            self._continued[system] += continues
        self._asked.add(hash(turns))
        return continues

    def starts_them(self, template: Template) -> bool:
        """True for a constant system prompt with whatever the user says, where requests continue earlier ones."""
        first, last = template.turns[0], template.turns[-1]
        if first.role != "system" or first.n_slots or any(last.pieces):
            return False
        system = hash(Turn("system", first.pieces[0]))
        return self._continued[system] >= max(_LEAST, _CONTINUED * self._by_system[system])
