"""Recurring tasks in recorded traffic: what each asks and answers, how often, for how much, and how steadily."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.path.project.task_file import NAME_PATTERN
from smallfirst.traffic.discovery.wordings import AnswerKind, Case, Wording, as_text
from smallfirst.traffic.task_source import AnswerFormat, FormatCheck, Template
from smallfirst.traffic.wire import question_of

MONTH = timedelta(days=30.44)
MIN_REQUESTS = 30
"""Fewest requests of a task."""
_NAME_WORDS = 3
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        "a about above after all an and any are as at be below by can for from give given go has have help here how i "
        "if in into is it its me my no not now of on one only or our out please reply return say so some that the "
        "their them then these they this to today use what when which who will with write you your following exactly "
        "answer text message input output date current assistant json user",
    )
)


class RecurringTask:
    """The wordings of one task with their cases."""

    def __init__(self, name: str, wordings: Sequence[Wording]) -> None:
        """Take the wordings in the order of their last case."""
        self.name, self.wordings = name, list(wordings)

    @property
    def kind(self) -> AnswerKind:
        return self.wordings[0].kind

    @cached_property
    def largest(self) -> Wording:
        """The wording with most cases."""
        return max(self.wordings, key=lambda wording: len(wording.cases))

    @cached_property
    def cases(self) -> list[tuple[Case, str, Any]]:
        """Each case with what it asks about and what its answer says (None: no value), oldest first."""
        found = [
            one for wording in self.wordings for one in zip(wording.cases, wording.texts, wording.values, strict=True)
        ]
        return sorted(found, key=lambda one: one[0].at)

    @cached_property
    def labels(self) -> dict[str, int]:
        """Labels, most frequent first, with their numbers of answers; empty for other answers."""
        if self.kind not in ("labels", "label lists"):
            return {}
        counts: Counter[str] = Counter()
        for wording in self.wordings:
            counts.update(wording.domain)
        return dict(counts.most_common())

    @property
    def answer_format(self) -> AnswerFormat | None:
        """Format of the largest wording's answers."""
        return self.largest.found.format if self.largest.found else None

    @cached_property
    def format_check(self) -> FormatCheck | None:
        """How faithfully the formats of all wordings give their answers back."""
        checks = [wording.found.check for wording in self.wordings if wording.found]
        if not checks:
            return None
        worst = next((check for check in checks if not check.is_exact), checks[0])
        return worst.model_copy(
            update={name: sum(getattr(check, name) for check in checks) for name in ("n_answers", "n_read", "n_exact")}
        )

    @cached_property
    def repeats(self) -> Estimate:
        """Share of repetitions of a case that got the answer of the one before (n: repetitions)."""
        last: dict[str, str] = {}
        n_repeats = n_same = 0
        for _, text, value in self.cases:
            answer = as_text(value)
            n_repeats, n_same = n_repeats + (text in last), n_same + (last.get(text) == answer)
            last[text] = answer
        return wilson(n_same, n_repeats)

    @property
    def first_at(self) -> datetime:
        """When the first case was asked."""
        return self.cases[0][0].at

    @property
    def last_at(self) -> datetime:
        return self.cases[-1][0].at

    def most_frequent(self, field: str) -> str:
        """Return the most frequent value of a field of its cases, such as `answered_by`."""
        counts = Counter(str(getattr(case, field)) for case, _, _ in self.cases)
        return counts.most_common(1)[0][0]

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Models that are asked for, most frequent first."""
        return tuple(model for model, _ in Counter(case.prompt.model for case, _, _ in self.cases).most_common())


def find_tasks(mined: Mapping[Template, Sequence[Case]]) -> list[RecurringTask]:
    """Return the tasks of mined templates, the most frequent first; the cases of a template oldest first."""
    wordings = [Wording(template, cases) for template, cases in mined.items()]
    groups = group_wordings([wording for wording in wordings if wording.cases])
    tasks: list[RecurringTask] = []
    taken: set[str] = set()
    for group in groups:
        if sum(len(wording.cases) for wording in group) < MIN_REQUESTS:
            continue
        name = _free_name(task_name_of(max(group, key=lambda wording: len(wording.cases))), taken)
        taken.add(name)
        tasks.append(RecurringTask(name, group))
    return tasks


def task_name_of(wording: Wording) -> str:
    """Return a name for a task: the function that answers call, or the first telling words of the instruction."""
    if wording.found and wording.found.format.tool:
        return _as_name(wording.found.format.tool)
    labels = frozenset(word for label in wording.domain for word in re.findall(r"[a-z]+", label.casefold()))
    text = " ".join(piece for turn in wording.template.template.turns for piece in turn.text.pieces)
    words = [word for word in re.findall(r"[a-z]{2,}", text.casefold()) if word not in _STOPWORDS]
    telling = list(dict.fromkeys(word for word in words if word not in labels)) or list(dict.fromkeys(words))
    return _as_name("-".join(telling[:_NAME_WORDS]))


def total_cost_usd(cases: Sequence[Case]) -> float | None:
    """Return what the answers cost, unpriced ones as the mean of the priced ones; None if no price is known."""
    known = [case.cost_usd for case in cases if case.cost_usd is not None]
    return sum(known) / len(known) * len(cases) if known else None


def _as_name(words: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", words.casefold()).strip("-")[:48].strip("-")
    return name if re.match(NAME_PATTERN, name) else "task"


def _free_name(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(other for n in range(2, len(taken) + 3) if (other := f"{name}-{n}") not in taken)


SAME_DOMAIN = 0.8
"""Share of answers that must lie in the other wording's labels or keys, both ways."""
TELLING_LABELS, TELLING_KEYS = 8, 3
"""Numbers of labels or keys from which an equal set is no coincidence."""
SAME_WORDS = 0.3
"""Jaccard index of the words of two prompts from which one is a version of the other."""


def group_wordings(wordings: Sequence[Wording]) -> list[list[Wording]]:
    """Return the wordings of each task, most frequent task first, wordings in the order of their last case."""
    group = list(range(len(wordings)))
    by_size = sorted(range(len(wordings)), key=lambda i: -len(wordings[i].cases))
    for place, i in enumerate(by_size):
        for j in by_size[:place]:
            if group[i] != group[j] and same_task(wordings[j], wordings[i]):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    members = [[wordings[i] for i in by_size if group[i] == g] for g in dict.fromkeys(group[i] for i in by_size)]
    members.sort(key=lambda one: -sum(len(wording.cases) for wording in one))
    return [sorted(one, key=lambda wording: wording.cases[-1].at) for one in members]


def same_task(first: Wording, second: Wording) -> bool:
    """Return True if both ask for the same thing.

    Equal sets of many labels or keys are enough; of few, the prompts must be alike as well.
    """
    asked = [question_of(one.template.template.response_format) for one in (first, second)]
    if first.kind != second.kind or asked[0] != asked[1]:  # each typed question is a task of its own
        return False
    alike = jaccard(first.words, second.words) >= SAME_WORDS
    if not first.domain and not second.domain:
        return alike
    if not _same_domain(first.domain, second.domain):
        return False
    telling = TELLING_KEYS if first.kind == "fields" else TELLING_LABELS
    return alike or min(len(first.domain), len(second.domain)) >= telling


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the share of the words of either that both have."""
    return len(first & second) / max(1, len(first | second))


def _same_domain(first: Counter[str], second: Counter[str]) -> bool:
    if not first or not second:
        return False
    within = [sum(n for key, n in a.items() if key in b) / a.total() for a, b in ((first, second), (second, first))]
    return min(within) >= SAME_DOMAIN
