"""Wordings: a template with its recorded cases, the format of their answers and what they answer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from smallfirst.traffic.answers.find_format import FoundFormat, find_format
from smallfirst.traffic.discovery.cases import Case
from smallfirst.traffic.discovery.slots import choose_slots
from smallfirst.traffic.task_source import TaskTemplate
from smallfirst.traffic.templates.template import Template

AnswerKind = Literal["labels", "label lists", "fields", "short answers", "open text", "mixed"]
"""What answers are: one of a few labels, a list of some, a JSON object, a few words, text, or no one thing."""

SHORT_CHARACTERS = 60
"""Median length up to which answers are short."""
_FREQUENT_KEY = 0.05
_WORDS = re.compile(r"\w+")


class Wording:
    """One way in which an application asks, and what it got."""

    def __init__(self, template: Template, cases: Sequence[Case]) -> None:
        """Take the template and the cases that follow it, oldest first."""
        found = [(case, filled) for case in cases if (filled := template.values(case.prompt)) is not None]
        self.cases = [case for case, _ in found]
        asked = "\n".join(piece for turn in template.turns for piece in turn.text.pieces)
        self.found: FoundFormat | None = find_format([case.answer for case in self.cases], asked)
        values = [filled for _, filled in found]
        answers = [as_text(self.value(case)) for case in self.cases]
        slots = choose_slots(template, values, answers, self._is_answer) if values and template.n_slots else ()
        self.template = TaskTemplate(template=template, slots=slots)

    def value(self, case: Case) -> Any | None:
        """Return what a case's answer says; None if it has not the format of the others."""
        return self.found.format.parse(case.answer) if self.found else None

    @cached_property
    def texts(self) -> list[str]:
        """What each case asks about."""
        return [self.template.text(case.prompt) or "" for case in self.cases]

    @cached_property
    def values(self) -> list[Any | None]:
        """What each case's answer says."""
        return [self.value(case) for case in self.cases]

    @cached_property
    def kind(self) -> AnswerKind:
        if self.found is None:
            return "mixed"
        if self.found.format.kind == "label":
            return "labels"
        read = [value for value in self.values if value is not None]
        if self.found.format.kind == "json":
            lists = [value for value in read if isinstance(value, list)]
            if not lists:
                return "fields"
            items = {item if isinstance(item, str) else "" for value in lists for item in value}
            few = len(items) <= len(read) / 5 and "" not in items
            return "label lists" if len(lists) == len(read) and few else "mixed"
        lengths = sorted(len(str(value)) for value in read)
        return "short answers" if lengths[len(lengths) // 2] <= SHORT_CHARACTERS else "open text"

    @cached_property
    def domain(self) -> Counter[str]:
        """Labels, or keys of JSON objects, with the numbers of answers that have them; empty for others."""
        if self.kind == "labels":
            labels = frozenset(self.found.labels) if self.found else frozenset()
            return Counter(value for value in self.values if value in labels)
        if self.kind == "label lists":
            return Counter(item for value in self.values for item in value or ())
        if self.kind == "fields":
            counts = Counter(key for value in self.values if value for key in value)
            return Counter({key: n for key, n in counts.items() if n >= _FREQUENT_KEY * len(self.values)})
        return Counter()

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the constant text, in lower case, without those of solved examples and of the answers."""
        turns = self.template.template.turns
        solved = {n for n, turn in enumerate(turns[:-1]) if turn.role == "assistant"}
        asking = [turn for n, turn in enumerate(turns) if n not in solved and n + 1 not in solved]
        text = " ".join(piece for turn in asking for piece in turn.text.pieces)
        return frozenset(_WORDS.findall(text.casefold())) - frozenset(_WORDS.findall(" ".join(self.domain).casefold()))

    def _is_answer(self, text: str) -> bool:
        if self.found is None:
            return False
        if self.found.format.kind == "label":
            one = self.found.format
            inner = text.strip().removeprefix(one.prefix.strip()).removesuffix(one.suffix.strip()).strip()
            return inner in self.found.labels
        return self.found.format.kind == "json" and text.lstrip()[:1] in ("{", "[", "`")


def as_text(value: Any) -> str:
    """Return a value as text: JSON in canonical form."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
