"""How a tagger's answers are made: what each field is, and JSON assembled from the values that were found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from smallfirst.base.records import Record
from smallfirst.tasks.json.answers import AnswerCheck
from smallfirst.tasks.json.schema import LIST, SEPARATORS, Schema, allowed_types, alternatives


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
    """An answer always has a value here."""

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
    one_object_a_line: bool = False
    """A list's next object begins with the next line that has one of its fields; else with the next value of a field
    that the object has."""

    @property
    def spans(self) -> tuple[FieldPlan, ...]:
        return tuple(field for field in self.fields if field.how == "span")

    @property
    def closed(self) -> tuple[FieldPlan, ...]:
        return tuple(field for field in self.fields if field.how == "closed")


class Found(NamedTuple):
    """A value and where its words begin in the text."""

    place: int
    value: Any


def assemble(plan: AnswerPlan, schema: Schema, found: Mapping[str, Sequence[Found]], text: str) -> str:
    """Return the answer as canonical JSON: `found` holds the values by path, in the order of the text."""
    answer: dict[str, Any] = {}
    grouped: dict[tuple[str, ...], list[tuple[Found, FieldPlan]]] = {}
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
        objects = _objects(sorted(members, key=lambda member: member[0].place), plan, text)
        if objects:
            _put(answer, group, objects)
    ordered = _complete(answer, schema, schema)
    return json.dumps(ordered, ensure_ascii=False, separators=SEPARATORS)


def _objects(members: Sequence[tuple[Found, FieldPlan]], plan: AnswerPlan, text: str) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = []
    end = 0
    for one, field in members:
        way = field.way[len(field.group or ()) + 1 :]
        is_next = "\n" in text[end : one.place] if plan.one_object_a_line else way[-1] != LIST and _has(objects, way)
        if not objects or is_next:
            objects.append({})
        if way[-1] == LIST:
            _put(objects[-1], way[:-1], [*_held(objects[-1], way[:-1], []), one.value])
        elif not _has(objects, way):
            _put(objects[-1], way, one.value)
        end = one.place
    return objects


def _has(objects: Sequence[dict[str, Any]], way: Sequence[str]) -> bool:
    return bool(objects) and _held(objects[-1], way, None) is not None


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
