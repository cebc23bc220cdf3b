"""Figures of a report: candidates side by side, their costs, and where one is wrong."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from smallfirst.base.stats.intervals import Estimate
from smallfirst.data.pages import MarkedPassage, Span, marked_passages
from smallfirst.measuring.evaluate import Comparison, EvaluatedRow, Evaluation, compare
from smallfirst.models.stages import Answerer, answerer
from smallfirst.path.report.data import ReportData
from smallfirst.tasks.json.fields import field_path, flatten, map_values
from smallfirst.tasks.task import PartCounts

HOURS_PER_MONTH = 730.0
NO_ANSWER = "(no answer)"
N_ERRORS = 3
"""Errors shown for each label or field."""
_NUMBER = re.compile(r"\[\d+\]")


def paired_candidates(data: ReportData) -> tuple[str, dict[str, Comparison]]:
    """Return the reference (the large model, else the first candidate), and how the others differ from it, by name."""
    reference = (data.evaluation("large") or data.evaluations[0]).candidate
    return reference, {e.candidate: c for e in data.evaluations if (c := difference(data, e.candidate, reference))}


def difference(data: ReportData, first: str | None, second: str) -> Comparison | None:
    """Compare two candidates on the rows both have; None if one was not measured or they share no row."""
    a, b = data.evaluation(first), data.evaluation(second)
    if a is None or b is None or a is b:
        return None
    comparison = compare(a, b)
    return comparison if comparison.difference.n else None


class PathCost(NamedTuple):
    """Cost of answering by one path."""

    candidate: str
    cost_usd_per_1k: float
    large_part_usd_per_1k: float
    """How much of it is spent on the large model."""
    monthly_usd: float
    saved_usd: float | None
    """USD a month less than the large path; None for that path itself, or where it was not measured."""
    pays_after: int | None
    """After how many requests the saving has paid training back; None if it never does."""


def path_costs(data: ReportData) -> tuple[PathCost, ...]:
    """Return each path's cost, in their order. Only the fine-tune, and `routed` if it drafts, cost training."""
    large, a_month = data.evaluation("large"), data.requests_per_month / 1000
    trained = {"small"} | ({"routed"} if data.focus.candidate == "small" else set())
    found = []
    for one in data.evaluations:
        usd, dearer = one.cost_usd_per_1k, large.cost_usd_per_1k if large and one is not large else None
        found.append(
            PathCost(
                candidate=one.candidate,
                cost_usd_per_1k=usd,
                large_part_usd_per_1k=large_part_usd_per_1k(one, large) if large else 0.0,
                monthly_usd=usd * a_month,
                saved_usd=None if dearer is None else (dearer - usd) * a_month,
                pays_after=None
                if dearer is None
                else break_even_requests(data.training_usd * (one.candidate in trained), usd, dearer),
            )
        )
    return tuple(found)


def large_part_usd_per_1k(path: Evaluation, large: Evaluation) -> float:
    """Return USD of a path's cost per 1,000 requests spent on the large model; its mean where a row is missing."""
    if path is large:
        return path.cost_usd_per_1k
    spent = 0.0
    for row in path.rows:
        if answerer(row.stage) is Answerer.LARGE:
            same = large.by_key.get(row.key)
            spent += min(same.cost_usd if same else large.cost_usd_per_1k / 1000, row.cost_usd)
    return spent / max(1, len(path.rows)) * 1000


def break_even_requests(training_usd: float, path_usd_per_1k: float, large_usd_per_1k: float) -> int | None:
    """Return after how many requests the saving has paid training back; None if the path is not cheaper."""
    saving = large_usd_per_1k - path_usd_per_1k
    if saving <= 0:
        return None
    # The rounding keeps a quotient like 1000.0000000000001 from becoming 1001.
    return math.ceil(round(training_usd / saving * 1000, 6))


def surest_errors(evaluation: Evaluation) -> tuple[EvaluatedRow, ...]:
    """Return the wrong answers, most confident first."""
    wrong = (row for row in evaluation.rows if not row.correct)
    return tuple(sorted(wrong, key=lambda row: -(row.confidence or 0.0)))


class FieldPair(NamedTuple):
    """One field in which two JSON answers differ."""

    path: str
    """Path of the field: `guest.name`, `items[].price`."""
    gold: str
    """Its right value as text; empty if the field should be absent."""
    said: str
    """The value given; empty if there is none."""
    state: Literal["wrong", "missing", "invented"]
    """`missing`: expected but not given; `invented`: given but not expected."""


def differing_fields(row: EvaluatedRow, part: str = "") -> list[FieldPair]:
    """Return how the answer differs from the nearest accepted one; with `part` only at that field or inside it."""
    found = min((differences(gold, row.answer) for gold in (row.gold, *row.also)), key=len)
    return [pair for pair in found if not part or is_within(pair.path, part)]


def differences(gold: str, said: str | None) -> list[FieldPair]:
    """Return the fields in which two JSON answers differ; the task's own normalizers may accept some of them."""
    expected, given = _fields(gold), _fields(said)
    found = []
    for path in dict.fromkeys([*expected, *given]):
        right, other = expected.get(path, ()), given.get(path, ())
        if Counter(map(_fold, right)) != Counter(map(_fold, other)):
            state: Any = "wrong" if right and other else "missing" if right else "invented"
            found.append(FieldPair(path, ", ".join(right), ", ".join(other), state))
    return found


class MarkedDocument(NamedTuple):
    """What was read in a document, and where."""

    row: EvaluatedRow
    passages: list[MarkedPassage]
    """Around the marks, which are named by numbered field paths."""
    wrong: frozenset[str]
    """Of the marks, those whose value is not the row's."""
    differing: list[FieldPair]
    """Fields that are wrong, were not read, or were invented."""
    unmarked: list[str]
    """Values of the answer that were read nowhere: a language model wrote them."""


def marked_documents(evaluation: Evaluation) -> list[MarkedDocument]:
    """Return the surest mistake and the surest right answer among documents."""
    rows = sorted((row for row in evaluation.rows if row.read), key=lambda row: -(row.confidence or 0.0))
    found = (next((row for row in rows if row.correct is right), None) for right in (False, True))
    return [_marked(row) for row in found if row is not None]


def _marked(row: EvaluatedRow) -> MarkedDocument:
    wrong = [field_path("", name) for name in row.wrong_fields or ()]
    golds = {(_NUMBER.sub("[]", path), said) for gold in (row.gold, *row.also) for path, said in _values(gold).items()}
    said = _values(row.answer)
    other = {
        path
        for path, value in said.items()
        if path in wrong
        or (any(is_within(path, name) for name in wrong) and (_NUMBER.sub("[]", path), value) not in golds)
    }
    if row.wrong_fields is None and not row.correct:  # an answer in words has one place
        other |= row.read.keys()
    return MarkedDocument(
        row,
        marked_passages(row.text, {path: Span(place.start, place.end) for path, place in row.read.items()}),
        frozenset(other),
        [pair for pair in differing_fields(row) if any(is_within(pair.path, name) for name in wrong)],
        [path for path in said if path not in row.read],
    )


def _values(text: str | None) -> dict[str, str]:
    """Return the values of a JSON answer, folded, by numbered path."""
    found = dict[str, str]()
    with suppress(ValueError, RecursionError):
        map_values(json.loads(text or "null"), lambda path, value: found.setdefault(path, _fold(str(value))))
    return found


def is_within(path: str, part: str) -> bool:
    """Return whether `path` is the field `part` or lies inside it: a task may count an object as one field."""
    return path == part or path.startswith((f"{part}.", f"{part}["))


def _fields(text: str | None) -> dict[str, tuple[str, ...]]:
    try:
        answer = json.loads(text or "")
    except (ValueError, RecursionError):
        return {"(not JSON)": (text,)} if text else {}
    as_text = {path or "(value)": values for path, values in flatten(answer).items()}
    return {path: tuple(v if isinstance(v, str) else json.dumps(v) for v in vs) for path, vs in as_text.items()}


def _fold(value: str) -> str:
    folded = " ".join(value.casefold().split())
    try:
        return repr(float(folded))
    except ValueError:
        return folded


class PartRow(NamedTuple):
    """One label or one field."""

    part: PartCounts
    errors: tuple[EvaluatedRow, ...]
    """A few rows where it went wrong, the most confident mistakes first."""

    @property
    def recall(self) -> Estimate | None:
        """Share found of what was there; None if it never occurs."""
        return self.part.recall if self.part.n_gold else None

    @property
    def precision(self) -> Estimate | None:
        """Share right of what was predicted; None if it was never predicted."""
        return self.part.precision if self.part.n_said else None

    @property
    def n_wrong(self) -> int:
        """Predicted where expected, but with another value (fields only)."""
        return max(0, self.part.n_gold - self.part.n_right - self.part.n_missing)

    @property
    def rank(self) -> tuple[bool, float, float, int, str]:
        """Sort key, the worst first; what never occurs comes last."""
        part, recall = self.part, self.recall.value if self.recall else 1.0
        return (part.n_gold + part.n_said == 0, part.f1, recall, -part.n_gold, part.name)


def part_rows(evaluation: Evaluation, *, fields: bool) -> tuple[PartRow, ...]:
    """Return one row for each label or field, worst F1 first; those that never occur come last."""
    errors: dict[str, list[EvaluatedRow]] = defaultdict(list)
    for row in surest_errors(evaluation):
        for name in _wrong_fields(row, evaluation.parts) if fields else _wrong_labels(row):
            errors[name].append(row)
    rows = [PartRow(part, tuple(errors.get(part.name, ())[:N_ERRORS])) for part in evaluation.parts]
    return tuple(sorted(rows, key=lambda row: row.rank))


def _wrong_labels(row: EvaluatedRow) -> frozenset[str]:
    """Return, of several labels, those that were missed or wrongly added; of one just the right one."""
    gold = _labels(row.gold)
    return gold ^ _labels(row.answer) if row.gold.startswith("[") else gold


def _labels(answer: str | None) -> frozenset[str]:
    try:
        several = json.loads(answer) if answer and answer.startswith("[") else None
    except ValueError:
        several = None
    return frozenset(map(str, several)) if several is not None else frozenset([answer] if answer is not None else [])


def _wrong_fields(row: EvaluatedRow, parts: Sequence[PartCounts]) -> list[str]:
    paths = [pair.path for pair in differing_fields(row)]
    return [part.name for part in parts if any(is_within(path, part.name) for path in paths)]
