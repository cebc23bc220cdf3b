"""How a tagger's answers are made: the plan of each field, learned from where the values of training rows stand.

A field is marked if its values stand in the text in at least 95 % of the rows, without regard to white space, case and
punctuation; else it is judged from the whole text if it has few values, and what is left has to be written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from smallfirst.base.records import Record
from smallfirst.data.dataset import Example
from smallfirst.data.pages import Span
from smallfirst.models.spans.values import FORMS, NUMBER_FORMS, TEXT_FORMS, TIME_FORMS, occurrences, spelled_places
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.answers import AnswerCheck
from smallfirst.tasks.json.fields import comparison_key, flatten
from smallfirst.tasks.json.schema import LIST, SEPARATORS, FieldSpec, Schema, allowed_types, alternatives

TOLERANCE = 0.05
"""Share of the rows that may hold a value of a field that cannot be marked."""
MAX_CLOSED = 64
"""Most values of a field that is judged from the whole text."""
MIN_SEEN = 3
"""Training rows with each such value that the schema does not list; of other values some may be rarer."""
LEAST_EXACT = 0.5
"""Share of the values of a marked field that must come back as the rows write them."""
SAMPLE = 500
"""Rows, about, from which is learned how values are written."""
_FORMS = (("date", "date_dmy"), TIME_FORMS, NUMBER_FORMS, TEXT_FORMS)
"""Of each group a field has one form at most: what one reads, the others read too."""
_LEAST_SHARE = 0.01
"""Of a field's values that a form must reproduce."""


class FieldPlan(Record):
    """How one field's values are found."""

    path: str
    """As in the schema: `slots.artist`, `items[].price`."""
    way: tuple[str, ...]
    """Names from the root of the answer, `[]` for the items of a list."""
    how: Literal["span", "closed", "several", "written"]
    """`span`: words of the text · `closed`: one of `values`, judged from the whole text · `several`: any number of
    them · `written`: none of these, so a language model has to write it."""
    forms: tuple[str, ...] = ()
    """Forms of a span's value (`values`), tried in this order."""
    values: tuple[str, ...] = ()
    """The values judged from the whole text, as JSON; of a closed field empty text for none."""
    absent: str = ""
    """What stands where there is no value: `null`, `""`, `[]`, or nothing."""
    must: bool = False
    exact: float = 1.0
    """Share of a marked field's training values that come back as the rows write them."""
    why: str = ""
    """Why it has to be written, in a clause."""

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
        """Fields judged from the whole text."""
        return tuple(field for field in self.fields if field.how in ("closed", "several"))

    @property
    def why(self) -> str:
        """Why marking does not do, in a clause; empty if it does."""
        return "; ".join(list(dict.fromkeys(field.why for field in self.written))[:3])

    @property
    def written(self) -> tuple[FieldPlan, ...]:
        return tuple(field for field in self.fields if field.how == "written")


class FoundValue(NamedTuple):
    """A value and where its words begin and end in the text."""

    place: int
    value: Any
    end: int = 0


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
            kinds = {kind for option in alternatives(schema, held) for kind in allowed_types(option)}
            empty = "null" if "null" in kinds else "{}" if "object" in kinds else "[]" if "array" in kinds else ""
            if empty:
                ordered[name] = _complete(json.loads(empty), held, schema)
    return ordered


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


def learn_plan(task: Extract, examples: Sequence[Example]) -> AnswerPlan:
    """Return how answers are made, field by field."""
    rows = [parse_row(example) for example in examples]
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    fields = [_field(task, spec, rows, sample) for spec in task.fields]
    known = {spec.path for spec in task.fields}
    for path in {path for row in rows for path in row.values} - known:
        name = next(name for row in rows for name, held in row.answer.items() if path in flatten({name: held}))
        fields.append(_written(path, (name,), f"`{path}` is not named in the schema"))
    plan = AnswerPlan(fields=tuple(fields))
    for group in {field.group for field in plan.spans if field.group} - {field.group for field in plan.written}:
        lost = sum(not _round_trip(task, plan, row, group) for row in sample) / len(sample)
        if lost > 2 * TOLERANCE:
            why = f"the objects of `{'.'.join(group)}` cannot be told apart in {100 * lost:.0f} % of the rows"
            fields = [_written(one.path, one.way, why) if one.group == group else one for one in fields]
    return AnswerPlan(fields=tuple(fields))


def _written(path: str, way: tuple[str, ...], why: str) -> FieldPlan:
    return FieldPlan(path=path, way=way, how="written", why=why)


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
    """Return where a form gives the value back exactly; if none does, where it stands in other spelling."""
    how = task.normalise.get(path, "exact")
    found = next((found for form in forms if (found := occurrences(row.text, value, form, how))), [])
    in_words = isinstance(value, str) and any(form in TEXT_FORMS for form in forms)
    return [Span(*place) for place in found or (spelled_places(row.text, value) if in_words else [])]


class _Forms(NamedTuple):
    forms: tuple[str, ...]
    missing: float
    """Share of the rows with a value that does not stand in the text."""
    exact: float
    """Share of the values that a form gives back exactly."""


def _forms(task: Extract, path: str, rows: Sequence[AnsweredRow]) -> _Forms:
    """Return the forms that reproduce most values."""
    left = [(n, value) for n, row in enumerate(rows) for value in row.values.get(path, ())]
    n_values, chosen, groups, how = len(left), list[str](), list(_FORMS), task.normalise.get(path, "exact")
    while left and groups:
        hits: dict[str, set[int]] = {}
        for form in (form for group in groups for form in group):
            hits[form] = {i for i, (n, value) in enumerate(left) if occurrences(rows[n].text, value, form, how)}
            if len(hits[form]) == len(left):
                break
        best = max(hits, key=lambda form: len(hits[form]))
        if len(hits[best]) < max(1, _LEAST_SHARE * n_values):
            break
        chosen.append(best)
        groups = [group for group in groups if best not in group]
        left = [pair for i, pair in enumerate(left) if i not in hits[best]]
    forms = tuple(sorted(chosen, key=FORMS.index)) or ("text",)
    missing = {n for n, value in left if not _places(task, path, forms, rows[n], value)}
    return _Forms(forms, len(missing) / len(rows), 1 - len(left) / max(1, n_values))


def _field(task: Extract, spec: FieldSpec, rows: Sequence[AnsweredRow], sample: Sequence[AnsweredRow]) -> FieldPlan:
    """Return the plan of a field, learned from the rows, its forms from a sample of them."""
    path, way = spec.path, spec.way
    holder = way[:-1] if way[-1] == LIST else way
    if holder.count(LIST) > 1 or holder[-1] == LIST:
        return _written(path, way, f"`{path}` is in a list within a list")
    forms, missing, exact = _forms(task, path, sample)
    held = [row.values.get(path, []) for row in rows]
    seen = Counter(json.dumps(value, ensure_ascii=False) for values in held for value in values)
    n_seen, present = seen.total(), sum(map(bool, held))
    listed = bool(spec.enum) or spec.type == "boolean"
    usual = seen if listed else {value: n for value, n in seen.items() if n >= MIN_SEEN}
    is_few = 0 < len(usual) <= MAX_CLOSED and sum(usual.values()) >= (1 - TOLERANCE) * n_seen and LIST not in holder
    must = spec.required and not spec.nullable and LIST not in way
    absent = _absent(way, rows, path)
    if spec.is_list and is_few and missing > TOLERANCE:
        repeated = sum(len(values) > len(set(map(json.dumps, values))) for values in held)
        if repeated <= TOLERANCE * present:
            must = present == len(rows)
            return FieldPlan(path=path, way=way, how="several", values=tuple(sorted(usual)), absent=absent, must=must)
    elif is_few and not spec.is_list and (listed or missing > TOLERANCE):
        none = () if present == len(rows) else ("",)
        return FieldPlan(path=path, way=way, how="closed", values=(*none, *sorted(usual)), absent=absent, must=must)
    if missing > TOLERANCE:
        share = min(1.0, missing * len(rows) / present)
        return _written(path, way, f"{100 * share:.0f} % of the values of `{path}` do not occur in their texts")
    if exact < LEAST_EXACT:
        why = f"{100 * (1 - exact):.0f} % of the values of `{path}` stand in their texts in other spelling only"
        return _written(path, way, f"{why} (normalise: {{{path}: words}} compares without it)")
    return FieldPlan(path=path, way=way, how="span", forms=forms, absent=absent, must=must, exact=exact)


def _absent(way: tuple[str, ...], rows: Sequence[AnsweredRow], path: str) -> str:
    """Return what most rows without a value hold in its place, as JSON; empty for nothing."""
    *before, name = way[:-1] if way[-1] == LIST else way
    said: Counter[str] = Counter()
    for row in rows if LIST not in before else ():
        holder = _held(row.answer, before, None)
        if path not in row.values and isinstance(holder, dict):
            said[json.dumps(holder[name]) if name in holder else ""] += 1
    return max(said, key=said.__getitem__, default="")


def _round_trip(task: Extract, plan: AnswerPlan, row: AnsweredRow, group: tuple[str, ...]) -> bool:
    """Return True if a list of objects comes back from where its values stand."""
    found: dict[str, list[FoundValue]] = {}
    for value, field in ((value, plan.spans[value.field]) for value in align(task, plan, row)):
        held = found.setdefault(field.path, [])
        held.append(FoundValue(value.places[0][0], row.values[field.path][len(held)]))
    said, gold = dict[str, Any](), dict[str, Any]()
    _put(said, group, _held(json.loads(assemble(plan, task.json_schema, found)), group, []))
    _put(gold, group, _held(row.answer, group, []))
    return comparison_key(said, task.normalise) == comparison_key(gold, task.normalise)
