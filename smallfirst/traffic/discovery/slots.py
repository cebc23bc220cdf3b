"""What the slots of a template hold: the case that is asked about, or what does not belong to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.traffic.task_source import Slot
from smallfirst.traffic.templates.template import Template

FREE_CHARACTERS = 25
"""Mean length from which a slot's values are text of their own."""
MAX_CATEGORIES = 30
"""Most different values of a slot that is a category, such as a channel."""
_SHUFFLES, _SEED = 99, 0
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_STAMP = re.compile(
    rf"""\s*(?:[\d\s.,:/+\-TZ]*\d[\d\s.,:/+\-TZ]*      # numbers, dates and times in figures
    |(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s*)?(?:\d{{1,2}}\.?\s+{_MONTH}|{_MONTH}\s+\d{{1,2}}),?\s+\d{{4}}[\d\s:]*
    |[0-9a-f]{{8}}[0-9a-f-]*|\#?[A-Z]{{1,6}}[-_]?\d[\w-]*)\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")
_NAME_WORDS = 2


class _Place(NamedTuple):
    """Where a slot is."""

    turn: int
    role: str
    before: str
    """The constant text before it in its message."""


def choose_slots(
    template: Template,
    values: Sequence[Sequence[str]],
    answers: Sequence[str],
    is_answer: Callable[[str], bool] = lambda _: False,
) -> tuple[Slot, ...]:
    """Return what each slot is for.

    `values` (cases, slots) and `answers` (cases,) as text; `is_answer` tells texts that look like the task's answers.
    Dates, numbers and identifiers are ignored, and so are solved examples that change with every request. Of several
    slots the longest is kept, and others that hold text of their own or a category on which the answers depend.
    """
    places = _places(template)
    columns = [[row[i] for row in values] for i in range(len(places))]
    ignored = _examples(template, places, columns, is_answer)
    ignored |= {i for i, column in enumerate(columns) if _is_stamp(column)}
    left = [i for i in range(len(places)) if i not in ignored] or list(range(len(places)))
    longest = max(left, key=lambda i: _mean_length(columns[i]), default=0)
    kept = {i for i in left if i == longest or _counts(columns[i], answers)}
    names = _names(places, longest)
    return tuple(Slot(name=name, use="text" if i in kept else "ignored") for i, name in enumerate(names))


def _places(template: Template) -> list[_Place]:
    return [
        _Place(number, turn.role, piece)
        for number, turn in enumerate(template.turns)
        for piece in turn.text.pieces[:-1]
    ]


def _examples(
    template: Template,
    places: Sequence[_Place],
    columns: Sequence[Sequence[str]],
    is_answer: Callable[[str], bool],
) -> set[int]:
    """Return the slots of solved examples: turns before an answer of the assistant, and cases beside an answer."""
    last = len(template.turns) - 1
    solved = {n for n, turn in enumerate(template.turns) if turn.role == "assistant" and n < last}
    found = {i for i, place in enumerate(places) if place.turn in solved or place.turn + 1 in solved}
    for i, column in enumerate(columns):
        if i > 0 and i - 1 not in found and places[i].turn == places[i - 1].turn and _are_answers(column, is_answer):
            found |= {i - 1, i}
    return found


def _are_answers(column: Sequence[str], is_answer: Callable[[str], bool]) -> bool:
    return len(set(column)) > 1 and sum(map(is_answer, column)) >= 0.8 * len(column)


def _is_stamp(column: Sequence[str]) -> bool:
    """Return True for dates, numbers and identifiers, also where a few are missing."""
    return sum(bool(_STAMP.fullmatch(value)) for value in column) >= 0.95 * len(column)


def _mean_length(column: Sequence[str]) -> float:
    return sum(map(len, column)) / max(1, len(column))


def _counts(column: Sequence[str], answers: Sequence[str]) -> bool:
    """Return True if a slot that is not the longest belongs to the case."""
    n_different = len(set(column))
    if n_different > MAX_CATEGORIES:
        return _mean_length(column) >= FREE_CHARACTERS or n_different < 0.5 * len(column)
    return n_different > 1 and depends(column, answers)


def depends(column: Sequence[str], answers: Sequence[str]) -> bool:
    """Return True if answers differ with the category, by a permutation test at 1 %."""
    categories = np.unique(np.asarray(column, dtype=object).astype(str), return_inverse=True)[1]
    frequent = {answer for answer, n in Counter(answers).most_common(50) if n > 1}
    kinds = np.unique([answer if answer in frequent else "" for answer in answers], return_inverse=True)[1]
    n_categories, n_kinds = int(categories.max()) + 1, int(kinds.max()) + 1
    if n_kinds < 2:
        return False
    expected = np.outer(np.bincount(categories), np.bincount(kinds)) / len(kinds)

    def chi_square(order: np.ndarray) -> float:
        counts = np.bincount(categories * n_kinds + order, minlength=n_categories * n_kinds).reshape(expected.shape)
        return float(((counts - expected) ** 2 / expected).sum())

    rng = np.random.default_rng(_SEED)
    seen = chi_square(kinds)
    return sum(chi_square(rng.permutation(kinds)) >= seen for _ in range(_SHUFFLES)) == 0


def _names(places: Sequence[_Place], longest: int) -> list[str]:
    """Return a name for each slot: the words before it, such as `ticket` for "Ticket: "; all different."""
    names: list[str] = []
    for i, place in enumerate(places):
        line = place.before.rstrip().rsplit("\n", 1)[-1]
        words = _WORD.findall(line) if re.search(r"""[:="'<>\]}]\s*$""", line) else []
        name = "_".join(words[-_NAME_WORDS:]).lower() or ("text" if i == longest else f"slot_{i + 1}")
        names.append(name if name not in names else f"{name}_{i + 1}")
    return names
