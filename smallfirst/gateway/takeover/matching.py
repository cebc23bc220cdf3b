"""Find the task that a request follows: an index of wordings, and requests that almost follow one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from smallfirst.traffic.answers.answer_format import AnswerFormat
from smallfirst.traffic.messages import Prompt, question_of
from smallfirst.traffic.task_source import TaskSource, TaskTemplate

PREFIX = 64
"""Characters of the first constant piece by which wordings are looked up."""
NEAR_SHARE = 0.7
"""Share of a wording's words that a request must contain to look like a changed version of it."""
MIN_WORDS = 5
"""A wording with fewer different words is not looked for in other requests."""
_WORD = re.compile(r"\w+")
_LONGEST = 20_000
"""Characters of a request that are searched for words."""


class Match(NamedTuple):
    """The task of a request, and the case that it asks about."""

    task: str
    text: str
    answer_format: AnswerFormat


class _Wording(NamedTuple):
    task: str
    template: TaskTemplate
    models: tuple[str, ...]
    answer_format: AnswerFormat


class TaskMatcher:
    """An index of the wordings of several tasks. A lookup does not depend on their number."""

    def __init__(self, sources: Mapping[str, TaskSource]) -> None:
        self._by_prefix: dict[tuple[str, ...], dict[str, list[_Wording]]] = defaultdict(lambda: defaultdict(list))
        self._beginnings: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._words: list[tuple[frozenset[str], str, tuple[str, ...]]] = []
        for task, source in sources.items():
            for wording in source.templates:
                template, form = wording.template, wording.answer_format or source.answer_format
                first = template.turns[0].text.pieces[0][:PREFIX]
                kind = (template.tools, template.response_format, *(turn.role for turn in template.turns))
                self._by_prefix[kind][first].append(_Wording(task, wording, source.models, form))
                self._beginnings[kind[2:]].add(first.partition("[")[0])  # a placeholder stands for other text
                constant = " ".join(piece for turn in template.turns for piece in turn.text.pieces)
                words = frozenset(_WORD.findall(constant.lower()))
                if len(words) >= MIN_WORDS and not question_of(template.response_format):
                    self._words.append((words, task, source.models))

    def may_find(self, raw: Prompt) -> bool:
        """Return False if a prompt that is not redacted yet follows no wording by its roles and first words.

        Redacting takes 0.3 ms for 1,000 characters, which requests of no task need not pay.
        """
        known, text = self._beginnings.get(tuple(turn.role for turn in raw.turns), ()), raw.turns[0].text
        return any(text.startswith(beginning) for beginning in known)

    def find(self, prompt: Prompt) -> Match | None:
        """Return the task whose wording the prompt follows, asked of a model that the task is asked of."""
        kind = (prompt.tools, prompt.response_format, *(turn.role for turn in prompt.turns))
        known, text = self._by_prefix.get(kind), prompt.turns[0].text
        if known is None:
            return None
        for length in sorted({len(prefix) for prefix in known}, reverse=True):
            for wording in known.get(text[:length], ()):
                if wording.models and prompt.model not in wording.models:
                    continue
                if (case := wording.template.text(prompt)) is not None:
                    return Match(wording.task, case, wording.answer_format)
        return None

    def near(self, prompt: Prompt) -> str | None:
        """Return the task that a prompt which follows no wording resembles most: a changed wording of it, or None.

        It is asked of a model that the task is asked of.
        A typed question resembles none: many are asked at once in almost the same words, and a changed one is another.
        """
        if not self._words or question_of(prompt.response_format):
            return None
        text = "\n".join(turn.text for turn in prompt.turns)[:_LONGEST]
        words = set(_WORD.findall(text.lower()))
        known = [one for one in self._words if not one[2] or prompt.model in one[2]]
        share, task = max(
            ((len(constant & words) / len(constant), task) for constant, task, _ in known), default=(0, "")
        )
        return task if share >= NEAR_SHARE else None
