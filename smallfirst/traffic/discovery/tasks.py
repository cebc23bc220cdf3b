"""Recurring tasks in recorded traffic: cases, wordings that ask for the same, what each asks, answers and costs."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.conversations import to_text
from smallfirst.path.project.task_file import NAME_PATTERN
from smallfirst.traffic.assistant import Assistant, read_request
from smallfirst.traffic.discovery.answer_formats import FoundFormat, find_format
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.questions import ROUTE, read_decision
from smallfirst.traffic.task_source import AnswerFormat, FormatCheck, TaskTemplate, Template, TemplateSlot
from smallfirst.traffic.wire import ModelAnswer, Prompt, question_of, read_answer, read_prompt

# Cases

_MOST_CHARACTERS = 100_000
MOST_CASES = 100_000
"""Cases that are held; of more, so many are drawn at random, which settles shares to a fraction of a percent."""


class Case(NamedTuple):
    """A request with messages and the answer that it got."""

    id: str
    at: datetime
    prompt: Prompt
    answer: ModelAnswer
    answered_by: str
    """Model that answered, or the one that was asked for where the response names none."""
    cost_usd: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    timed: bool
    """False: `at` is no more than the order in the log."""
    trace: str
    """As in `Exchange`."""
    step: str
    tenant: str = ""
    assistant: Assistant | None = None
    """Whose functions it may call; None where it has none, or where the conversation is not understood."""
    lines: tuple[str, ...] = ()
    """The conversation with it, as `conversations.to_text` writes it."""


_FACTS = tuple(name for name in Case._fields if name in Exchange.model_fields and name != "answered_by")


class Cases(NamedTuple):
    """What can be looked at, and what cannot."""

    cases: list[Case]
    """Oldest first."""
    left_out: dict[str, int]
    """Numbers of other exchanges by reason."""
    n: int
    """Cases of which `cases` were drawn."""


def read_cases(exchanges: Iterable[Exchange], most: int = MOST_CASES) -> Cases:
    """Return the exchanges that ask and answer in words, at most so many; typed decisions as one case a question.

    Of more cases each is drawn with the same probability (Vitter's algorithm R, fixed seed), so memory is bounded.
    """
    cases: list[Case] = []
    left_out: Counter[str] = Counter()
    n, rng = 0, random.Random(0)
    for exchange in one_question_each(exchanges):
        found = _case(exchange)
        if isinstance(found, str):
            left_out[found] += 1
            continue
        n += 1
        place = len(cases) if n <= most else rng.randrange(n)
        if place < most:
            cases[place : place + 1] = [_shared(found)]
    cases.sort(key=lambda case: case.at)
    return Cases(cases, dict(left_out), n)


_BILL = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd")


def one_question_each(exchanges: Iterable[Exchange]) -> Iterator[Exchange]:
    """Yield decisions as one exchange a question, with equal parts of tokens and cost, and all others as they are.

    The exchange of question i, from 0, has the id `ID#i`. A decision that cannot be read passes as it is.
    """
    for exchange in exchanges:
        request = read_decision(exchange.request) if exchange.route == ROUTE else None
        answers = exchange.response.get("answers")
        if request is None or not isinstance(answers, list) or len(answers) != len(request.questions):
            yield exchange
            continue
        shares = {name: _part_of(getattr(exchange, name), len(answers)) for name in _BILL}
        for i, (question, answer) in enumerate(zip(request.questions, answers, strict=True)):
            body, response = request.with_questions([question]), {**exchange.response, "answers": [answer]}
            changed = {"id": f"{exchange.id}#{i}", "request": body, "response": response}
            yield exchange.model_copy(update={**changed, **shares})


def _part_of(amount: float | None, n: int) -> float | None:
    return None if amount is None else round(amount / n) if isinstance(amount, int) else amount / n


def _shared(case: Case) -> Case:
    """Return the case with texts that others have too kept once, as long as one has them."""
    prompt = case.prompt
    return case._replace(
        prompt=prompt._replace(
            turns=tuple(turn._replace(text=sys.intern(turn.text)) for turn in prompt.turns),
            tools=sys.intern(prompt.tools),
            response_format=sys.intern(prompt.response_format),
        ),
        lines=tuple(map(sys.intern, case.lines)),
    )


def _case(exchange: Exchange) -> Case | str:
    prompt = read_prompt(exchange.route, exchange.request)
    if prompt is None:
        return f"{exchange.route}: no messages"
    if exchange.status >= 400:
        return "answered with an error"
    answer = read_answer(exchange.route, exchange.response)
    if answer is None:
        return "no answer recorded"
    if sum(len(turn.text) for turn in prompt.turns) > _MOST_CHARACTERS:
        return f"longer than {_MOST_CHARACTERS:,} characters"
    facts = {name: getattr(exchange, name) for name in _FACTS}
    asked = read_request(exchange.route, exchange.request) if prompt.tools else None
    return Case(
        prompt=prompt,
        answer=answer,
        answered_by=exchange.answered_by or exchange.model,
        assistant=asked.assistant if asked else None,
        lines=tuple(to_text(asked.turns).split("\n")) if asked else (),
        **facts,
    )


# Wordings

AnswerKind = Literal["labels", "label lists", "fields", "short answers", "functions", "open text", "mixed"]
"""What answers are: one of a few labels, a list of some, a JSON object, a few words, an assistant's calls of functions
and text between them, text, or no one thing."""

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
        asked = "\n".join(piece for turn in template.turns for piece in turn.pieces)
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
        text = " ".join(piece for turn in asking for piece in turn.pieces)
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
_SLOT_NAME_WORDS = 2


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
) -> tuple[TemplateSlot, ...]:
    """Return what each slot is for.

    `values` (cases, slots) and `answers` (cases,) as text; `is_answer` tells texts that look like the task's answers.
    Dates, numbers and identifiers are ignored, and so are solved examples that change with every request. Of several
    slots the longest is kept, and others that hold text of their own or a category on which the answers depend.
    """
    places = _places(template)
    columns = [[row[i] for row in values] for i in range(len(places))]
    ignored = _examples(template, places, columns, is_answer)
    stamps = [sum(_STAMP.fullmatch(value) is not None for value in column) for column in columns]
    ignored |= {i for i, n in enumerate(stamps) if n >= 0.95 * len(values)}  # also where a few are missing
    left = [i for i in range(len(places)) if i not in ignored] or list(range(len(places)))
    longest = max(left, key=lambda i: _mean_length(columns[i]), default=0)
    kept = {i for i in left if i == longest or _counts(columns[i], answers)}
    names = _names(places, longest)
    return tuple(TemplateSlot(name=name, use="text" if i in kept else "ignored") for i, name in enumerate(names))


def _places(template: Template) -> list[_Place]:
    return [
        _Place(number, turn.role, piece) for number, turn in enumerate(template.turns) for piece in turn.pieces[:-1]
    ]


def _examples(
    template: Template, places: Sequence[_Place], columns: Sequence[Sequence[str]], is_answer: Callable[[str], bool]
) -> set[int]:
    """Return the slots of solved examples: turns before an answer of the assistant, and cases beside an answer."""
    last = len(template.turns) - 1
    solved = {n for n, turn in enumerate(template.turns) if turn.role == "assistant" and n < last}
    found = {i for i, place in enumerate(places) if place.turn in solved or place.turn + 1 in solved}
    for i, column in enumerate(columns):
        if i > 0 and i - 1 not in found and places[i].turn == places[i - 1].turn and len(set(column)) > 1:
            found |= {i - 1, i} if sum(map(is_answer, column)) >= 0.8 * len(column) else set()
    return found


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
        name = "_".join(words[-_SLOT_NAME_WORDS:]).lower() or ("text" if i == longest else f"slot_{i + 1}")
        names.append(name if name not in names else f"{name}_{i + 1}")
    return names


# Tasks

MONTH = timedelta(days=30.44)
MIN_REQUESTS = 30
"""Fewest requests of a task."""
_NAME_WORDS = 3
_NAMED = 0.9
"""Share of a wording's requests that must be of one step of the log for its name."""
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
        name = free_name(task_name_of(max(group, key=lambda wording: len(wording.cases))), taken)
        taken.add(name)
        tasks.append(RecurringTask(name, group))
    return tasks


def task_name_of(wording: Wording) -> str:
    """Return a name for a task: that of its step, the function that answers call, or the instruction's first words."""
    step, n = Counter(case.step for case in wording.cases).most_common(1)[0]
    if step and n >= _NAMED * len(wording.cases):
        return as_name(step)
    if wording.found and wording.found.format.tool:
        return as_name(wording.found.format.tool)
    labels = frozenset(word for label in wording.domain for word in re.findall(r"[a-z]+", label.casefold()))
    text = " ".join(piece for turn in wording.template.template.turns for piece in turn.pieces)
    words = [word for word in re.findall(r"[a-z]{2,}", text.casefold()) if word not in _STOPWORDS]
    telling = list(dict.fromkeys(word for word in words if word not in labels)) or list(dict.fromkeys(words))
    return as_name("-".join(telling[:_NAME_WORDS]))


def total_cost_usd(cases: Sequence[Case]) -> float | None:
    """Return what the answers cost, unpriced ones as the mean of the priced ones; None if no price is known."""
    known = [case.cost_usd for case in cases if case.cost_usd is not None]
    return sum(known) / len(known) * len(cases) if known else None


def as_name(words: str) -> str:
    """Return words as the name of a task."""
    name = re.sub(r"[^a-z0-9]+", "-", words.casefold()).strip("-")[:48].strip("-")
    return name if re.match(NAME_PATTERN, name) else "task"


def free_name(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: this one, or with a number."""
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
