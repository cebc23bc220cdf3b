"""How a tagger's answers are made: the plan of each field, learned from where the values of training rows stand.

A field is marked if its values occur in the text in at least 95 % of the rows; else it is closed if it has few values.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from smallfirst.base.records import Record
from smallfirst.data.dataset import Example
from smallfirst.models.spans.values import occurrences
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.answers import AnswerCheck
from smallfirst.tasks.json.fields import flatten
from smallfirst.tasks.json.schema import LIST, SEPARATORS, FieldSpec, Schema, allowed_types, alternatives

TOLERANCE = 0.05
"""Share of the rows that may hold a value of a field that cannot be marked."""
MAX_CLOSED = 64
"""Most values of a field that is judged from the whole text."""
SAMPLE = 500
"""Rows, about, from which is learned how values are written."""
ROWS_A_VALUE = 10
"""Training rows for each such value that the schema does not list, at least and on average."""
_FORMS = (("date", "date_dmy"), ("number", "digits"), ("text", "lower", "upper"))
"""Of each group a field has one form at most: what one reads, the others read too."""
_ORDER = ("date", "date_dmy", "number", "digits", "lower", "upper", "text")
"""In which a field's forms are tried: what reads anything comes last."""
_LEAST_SHARE = 0.01
"""Of a field's values that a form must reproduce."""

Span = tuple[int, int]


class FieldPlan(Record):
    """How one field's values are found."""

    path: str
    """As in the schema: `slots.artist`, `items[].price`."""
    way: tuple[str, ...]
    """Names from the root of the answer, `[]` for the items of a list."""
    how: Literal["span", "closed"]
    """`span`: words of the text · `closed`: one of `values`, judged from the whole text."""
    forms: tuple[str, ...] = ()
    """Forms of a span's value (`values`), tried in this order."""
    values: tuple[str, ...] = ()
    """The values of a closed field as JSON; empty text for none."""
    absent: str = ""
    """What stands where there is no value: `null`, `""`, `[]`, or nothing."""
    must: bool = False

    @property
    def is_list(self) -> bool:
        return self.way[-1] == LIST

    @property
    def group(self) -> tuple[str, ...] | None:
        """The way to the list of objects that holds it; None outside one."""
        return self.way[: self.way.index(LIST)] if LIST in self.way[:-1] else None


class AnswerPlan(Record):
    """How whole answers are made."""

    fields: tuple[FieldPlan, ...]

    @property
    def spans(self) -> tuple[FieldPlan, ...]:
        return tuple(field for field in self.fields if field.how == "span")

    @property
    def closed(self) -> tuple[FieldPlan, ...]:
        return tuple(field for field in self.fields if field.how == "closed")


class FoundValue(NamedTuple):
    """A value and where its words begin in the text."""

    place: int
    value: Any


def assemble(plan: AnswerPlan, schema: Schema, found: Mapping[str, Sequence[FoundValue]]) -> str:
    """Return the answer as canonical JSON: `found` holds the values by path, in the order of the text."""
    answer: dict[str, Any] = {}
    grouped: dict[tuple[str, ...], list[tuple[FoundValue, FieldPlan]]] = {}
    for field in plan.fields:
        values = found.get(field.path, ())
        if field.group is not None:
            grouped.setdefault(field.group, []).extend((one, field) for one in values)
        elif field.is_list and values:
            _put(answer, field.way[:-1], [one.value for one in values])
        elif values:
            _put(answer, field.way, values[0].value)
        elif field.absent:
            _put(answer, field.way[:-1] if field.is_list else field.way, json.loads(field.absent))
    for group, members in grouped.items():
        if members:
            _put(answer, group, _objects(sorted(members, key=lambda member: member[0].place)))
    ordered = _complete(answer, schema, schema)
    return json.dumps(ordered, ensure_ascii=False, separators=SEPARATORS)


def _objects(members: Sequence[tuple[FoundValue, FieldPlan]]) -> list[dict[str, Any]]:
    """Return the objects of a list: the next one begins with a value of a field that the last one has."""
    objects: list[dict[str, Any]] = [{}]
    for one, field in members:
        way = field.way[len(field.group or ()) + 1 :]
        if way[-1] == LIST:
            _put(objects[-1], way[:-1], [*_held(objects[-1], way[:-1], []), one.value])
            continue
        if _held(objects[-1], way, None) is not None:
            objects.append({})
        _put(objects[-1], way, one.value)
    return objects


def _held(value: Any, way: Sequence[str], default: Any) -> Any:
    for name in way:
        value = value.get(name) if isinstance(value, dict) else None
    return default if value is None else value


def _put(answer: dict[str, Any], way: Sequence[str], value: Any) -> None:
    for name in way[:-1]:
        answer = answer.setdefault(name, {})
    answer[way[-1]] = value


def _complete(value: Any, node: Schema, schema: Schema) -> Any:
    """Return `value` in schema order, with the empty objects and lists, or nulls, that the schema demands."""
    options = alternatives(schema, node)
    if isinstance(value, list):
        items: Schema = next((option["items"] for option in options if "array" in allowed_types(option)), {})
        return [_complete(item, items, schema) for item in value]
    if not isinstance(value, dict):
        return value
    option = next((option for option in options if "properties" in option), {})
    ordered = {}
    for name, held in option.get("properties", {}).items():
        if name in value:
            ordered[name] = _complete(value[name], held, schema)
        elif name in option.get("required", ()):
            empty = _empty(alternatives(schema, held))
            if empty is not None:
                ordered[name] = _complete(json.loads(empty), held, schema)
    return ordered


def _empty(options: Sequence[Schema]) -> str | None:
    kinds = [kind for option in options for kind in allowed_types(option)]
    return "null" if "null" in kinds else "{}" if "object" in kinds else "[]" if "array" in kinds else None


def node_at(schema: Schema, way: Sequence[str]) -> list[Schema]:
    """Return the nodes of the schema that a way leads to."""
    nodes = alternatives(schema, schema)
    for name in way:
        held = [node.get("items") if name == LIST else node.get("properties", {}).get(name) for node in nodes if node]
        nodes = [found for node in held if node for found in alternatives(schema, node)]
    return nodes


def is_allowed(schema: Schema, nodes: Sequence[Schema], value: Any) -> bool:
    """Return True if one of the schema's nodes allows the value."""
    check = AnswerCheck(schema)
    return any(check.is_valid(value, node) for node in nodes)


class AnsweredRow(NamedTuple):
    """A training row, its values by path."""

    text: str
    answer: Any
    values: dict[str, list[Any]]


class PlacedValue(NamedTuple):
    """A value of a row and where it may stand in the text."""

    field: int
    places: tuple[Span, ...]


def parse_row(example: Example) -> AnsweredRow:
    """Return the row with its values by path; empty texts count as no value."""
    answer = json.loads(example.answer)
    values = {path: [v for v in held if v != ""] for path, held in flatten(answer).items()}
    return AnsweredRow(example.text, answer, {path: held for path, held in values.items() if held})


def learn_plan(task: Extract, examples: Sequence[Example]) -> tuple[AnswerPlan, str]:
    """Return how answers are made, and in a clause why marking does not do; empty if it does."""
    rows = [parse_row(example) for example in examples]
    paths = [spec.path for spec in task.fields]
    problems = [f"`{path}` is not named in the schema" for row in rows for path in row.values if path not in paths]
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    fields = []
    for spec in task.fields:
        holder = spec.way[:-1] if spec.way[-1] == LIST else spec.way
        if holder.count(LIST) > 1 or holder[-1] == LIST:
            problems.append(f"`{spec.path}` is in a list within a list")
            continue
        chosen, missing = _forms(task, spec.path, sample)
        field, problem = _field(spec, rows, chosen, missing)
        fields.append(field)
        problems += [problem] * bool(problem)
    plan = AnswerPlan(fields=tuple(fields))
    if any(field.group for field in plan.spans) and not problems:
        lost = sum(not _round_trip(task, plan, row) for row in sample) / len(sample)
        if lost > 2 * TOLERANCE:
            names = ", ".join(sorted({f"`{'.'.join(field.group)}`" for field in plan.spans if field.group}))
            problems.append(f"the objects of {names} cannot be told apart in {100 * lost:.0f} % of the rows")
    return plan, "; ".join(list(dict.fromkeys(problems))[:3])


def align(task: Extract, plan: AnswerPlan, row: AnsweredRow) -> list[PlacedValue]:
    """Return the row's values that stand in the text. Of a list, a value's place follows that of the one before."""
    found = []
    for number, field in enumerate(plan.spans):
        cursor = 0
        for value in row.values.get(field.path, ()):
            places = _places(task, field.path, field.forms, row, value)
            if LIST in field.way and places:
                places = [next((place for place in places if place[0] >= cursor), places[0])]
                cursor = places[0][1]
            if places:
                found.append(PlacedValue(number, tuple(places)))
    return found


def _places(task: Extract, path: str, forms: Sequence[str], row: AnsweredRow, value: Any) -> list[Span]:
    how = task.normalise.get(path, "exact")
    return next((found for form in forms if (found := occurrences(row.text, value, form, how))), [])


def _forms(task: Extract, path: str, rows: Sequence[AnsweredRow]) -> tuple[tuple[str, ...], float]:
    """Return the forms that reproduce most values, and the share of the rows with values that none does."""
    left = [(n, value) for n, row in enumerate(rows) for value in row.values.get(path, ())]
    n_values, chosen, groups = len(left), list[str](), list(_FORMS)
    while left and groups:
        hits: dict[str, set[int]] = {}
        for form in (form for group in groups for form in group):
            hits[form] = {i for i, (n, value) in enumerate(left) if _places(task, path, (form,), rows[n], value)}
            if len(hits[form]) == len(left):
                break
        best = max(hits, key=lambda form: len(hits[form]))
        if len(hits[best]) < max(1, _LEAST_SHARE * n_values):
            break
        chosen.append(best)
        groups = [group for group in groups if best not in group]
        left = [pair for i, pair in enumerate(left) if i not in hits[best]]
    return tuple(sorted(chosen, key=_ORDER.index)), len({n for n, _ in left}) / len(rows)


def _field(
    spec: FieldSpec, rows: Sequence[AnsweredRow], forms: tuple[str, ...], missing: float
) -> tuple[FieldPlan, str]:
    """Return the plan of a field, and what speaks against it; `missing` is the share of rows that cannot be marked."""
    way, present = spec.way, [row.values[spec.path] for row in rows if spec.path in row.values]
    must = spec.required and not spec.nullable and LIST not in way
    absent = _absent(way, rows, spec.path)
    field = FieldPlan(path=spec.path, way=way, how="span", forms=forms or ("text",), absent=absent, must=must)
    values = Counter(json.dumps(value, ensure_ascii=False) for held in present for value in held)
    listed = bool(spec.enum) or spec.type == "boolean"
    is_few = len(values) <= MAX_CLOSED and (listed or len(values) * ROWS_A_VALUE <= len(present)) and LIST not in way
    if is_few and (listed or missing > TOLERANCE):
        none = () if len(present) == len(rows) else ("",)
        return field.model_copy(update={"how": "closed", "values": (*none, *sorted(values)), "forms": ()}), ""
    if missing <= TOLERANCE:
        return field, ""
    share = min(1.0, missing * len(rows) / len(present))
    return field, f"{100 * share:.0f} % of the values of `{spec.path}` do not occur in their texts"


def _absent(way: tuple[str, ...], rows: Sequence[AnsweredRow], path: str) -> str:
    """Return what most rows without a value hold in its place, as JSON; empty for nothing."""
    *before, name = way[:-1] if way[-1] == LIST else way
    said: Counter[str] = Counter()
    for row in rows if LIST not in before else ():
        holder = _held(row.answer, before, None)
        if path not in row.values and isinstance(holder, dict):
            said[json.dumps(holder[name]) if name in holder else ""] += 1
    return max(said, key=said.__getitem__, default="")


def _round_trip(task: Extract, plan: AnswerPlan, row: AnsweredRow) -> bool:
    """Return True if the row's answer comes back from where its values stand."""
    found: dict[str, list[FoundValue]] = {}
    for value, field in ((value, plan.spans[value.field]) for value in align(task, plan, row)):
        held = found.setdefault(field.path, [])
        held.append(FoundValue(value.places[0][0], row.values[field.path][len(held)]))
    for field in plan.closed:
        found[field.path] = [FoundValue(0, value) for value in row.values.get(field.path, ())]
    said = task.parse(assemble(plan, task.json_schema, found))
    return task.score([json.dumps(row.answer)], said) == 1
