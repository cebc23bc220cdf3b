"""The fields of an extraction's JSON schema as a list, and the closed form of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from smallfirst.tasks.json.paths import field_path, list_items_path
from smallfirst.tasks.json.schema_limits import (
    CHOICES,
    DEFINITIONS,
    KEYWORDS,
    SCALARS,
    Schema,
    allowed_types,
    allowed_values,
    resolve_reference,
)
from smallfirst.tasks.json.schema_limits import check_schema as check_schema

SEPARATORS = (", ", ": ")
"""Between items, and between key and value: how canonical answers are spaced, and what the grammar must write."""
LIST = "[]"
"""The step of a way into a list."""


class FieldSpec(NamedTuple):
    """One place for a value in the answers of a schema."""

    path: str
    """`slots.artist`, or `items[].price` inside a list of objects."""
    type: str
    """`string`, `integer`, `number`, `boolean`, `null`; several joined by `|`; without null, which is `nullable`."""
    nullable: bool
    enum: tuple[Any, ...]
    """Allowed values but null; empty if open."""
    required: bool
    """True if the object that holds it must have it."""
    is_list: bool
    about: str = ""
    way: tuple[str, ...] = ()
    """Names from the root of the answer, LIST for the items of a list."""


def alternatives(schema: Schema, node: Schema) -> list[Schema]:
    """Return the nodes that `node` of a checked `schema` offers once references and choices are followed."""
    if "$ref" in node:
        return alternatives(schema, resolve_reference(schema, node["$ref"]))
    if choice := next((key for key in CHOICES if key in node), None):
        return [found for option in node[choice] for found in alternatives(schema, option)]
    return [node]


def closed_schema(schema: Schema) -> dict[str, Any]:
    """Return `schema` with open objects closed, types written out, and no annotations but descriptions."""
    cleaned: dict[str, Any] = _closed(schema)
    for key in DEFINITIONS:
        if key in schema:
            cleaned[key] = {name: _closed(node) for name, node in schema[key].items()}
    return cleaned


def _closed(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    if len(node.get("allOf", ())) == 1:
        inner = _closed(node["allOf"][0])
        return {**inner, "description": node["description"]} if "description" in node else inner
    kept = {k: v for k, v in node.items() if k in KEYWORDS or k == "description"}
    for choice in ("anyOf", "oneOf"):  # the grammar cannot count matches, so one of several is read as any of them
        if choice in kept:
            kept["anyOf"] = [_closed(option) for option in kept.pop(choice)]
    if "properties" in kept:
        kept["properties"] = {name: _closed(field) for name, field in kept["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in kept:
            kept[key] = _closed(kept[key])
    kinds = allowed_types(kept)
    if "type" not in kept and "enum" not in kept and "const" not in kept and kinds:
        kept["type"] = kinds[0]
    if "object" in kinds:
        kept.setdefault("additionalProperties", False)
    return kept


def list_fields(schema: Schema) -> tuple[FieldSpec, ...]:
    """Return every place for a value, in schema order; a recursive reference is followed once."""
    found: dict[str, FieldSpec] = {}

    def walk(node: Schema, path: str, way: tuple[str, ...], required: bool, about: str, refs: frozenset[str]) -> None:
        about, is_list = node.get("description", about), way[-1:] == (LIST,)
        if reference := node.get("$ref"):
            if reference not in refs:
                walk(resolve_reference(schema, reference), path, way, required, about, refs | {reference})
            return
        for choice in CHOICES:
            for option in node.get(choice, ()):
                walk(option, path, way, required, about, refs)
        for name, field in node.get("properties", {}).items():
            inside = field_path(path, name, in_list=is_list)
            walk(field, inside, (*way, name), name in node.get("required", ()), "", refs)
        if isinstance(items := node.get("items"), Mapping):
            walk(items, list_items_path(path, in_list=is_list), (*way, LIST), required, about, refs)
        kinds = [kind for kind in allowed_types(node) if kind in SCALARS]
        if path and kinds:
            values = tuple(value for value in allowed_values(node) if value is not None)
            nullable = "null" in kinds and (not allowed_values(node) or None in allowed_values(node))
            kind = "|".join(k for k in kinds if k != "null") or "null"
            spec_here = FieldSpec(path, kind, nullable, values, required, is_list, about, way)
            found[path] = _merged(found[path], spec_here) if path in found else spec_here

    walk(schema, "", (), True, "", frozenset({"#"}))
    return tuple(found.values())


def _merged(first: FieldSpec, second: FieldSpec) -> FieldSpec:
    kinds = [k for k in dict.fromkeys([*first.type.split("|"), *second.type.split("|")]) if k != "null"]
    open_ended = any(not spec.enum and spec.type != "null" for spec in (first, second))
    return FieldSpec(
        first.path,
        "|".join(kinds) or "null",
        first.nullable or second.nullable or "null" in (first.type, second.type),
        () if open_ended else tuple(dict.fromkeys(first.enum + second.enum)),
        first.required and second.required,
        first.is_list or second.is_list,
        first.about or second.about,
        first.way if second.type == "null" else second.way,
    )
