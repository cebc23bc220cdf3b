"""Limits on the JSON schema of an extraction: bounded, nothing fetched, only keywords that the grammar enforces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from smallfirst.errors import ConfigError, did_you_mean
from smallfirst.tasks.json.patterns import pattern_problem

Schema = Mapping[str, Any]
JsonPath = tuple[str, ...]

MAX_BYTES = 65_536
"""Largest schema, as JSON."""
MAX_DEPTH = 16
"""Most fields and lists inside one another, references written out."""
MAX_PROPERTIES = 500
"""Most fields in all, references written out."""
MAX_ENUM_VALUES = 2_000
"""Most allowed values in all, references written out."""
MAX_LENGTH = 10_000
"""Largest minLength, maxLength, minItems and maxItems: the grammar counts them out."""

SCALARS = ("string", "integer", "number", "boolean", "null")
CHOICES = ("anyOf", "oneOf", "allOf")
DEFINITIONS = ("$defs", "definitions")
ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
    + ("discriminator", "$comment", "$schema", "$id")
)
"""Keywords that forbid nothing."""
_OF_TYPE = {
    "string": ["minLength", "maxLength", "pattern", "format"],
    "number": ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
    "array": ["items", "minItems", "maxItems"],
    "object": ["properties", "required", "additionalProperties"],
}
_TYPES_OF = {key: ("integer", "number") if kind == "number" else (kind,) for kind, ks in _OF_TYPE.items() for key in ks}
KEYWORDS = frozenset({*_TYPES_OF, *CHOICES, "type", "enum", "const", "$ref"})
_INSTEAD = {
    "nullable": 'write "type": ["string", "null"]',
    "patternProperties": "name every field",
    "prefixItems": "use an object with named fields",
}
_FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_RANGES = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum"))
_MOST_NODES = 20_000
_MOST_PROBLEMS = 20
_MOST_NESTED = 100
"""JSON levels of a schema; a field takes two, a choice two more."""


def check_schema(schema: Any) -> None:
    """Raise ConfigError with place and rule of everything that makes `schema` unusable."""
    problems = _problems_of_json(schema)
    if not problems:
        errors = Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema)
        problems = [f"{_shown(tuple(map(str, error.path)))}: {_short(error.message)}" for error in errors]
    if not problems:
        check = _Check(schema)
        if "$ref" in schema or allowed_types(schema) != ("object",):
            check.wrong((), 'the root must be an object: "type": "object" with "properties"')
        check.node(schema, (), _Way(0, frozenset({"#"}), frozenset({"#"})))
        if not check.problems and "#" not in _that_end(schema):
            check.wrong((), "no answer could ever end: a field that must be there holds itself; make it optional")
        problems = check.problems
    if problems:
        shown = [f"  {line}" for line in problems[:_MOST_PROBLEMS]]
        more = [f"  … and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ConfigError(
            "\n".join(["schema cannot be used:", *shown, *more]),
            hint="fix these places, or leave schema out: it is then inferred from the training rows",
        )


def allowed_types(node: Schema) -> tuple[str, ...]:
    """Return the JSON types that a node without references and choices allows."""
    said = node.get("type")
    if said is not None:
        return (said,) if isinstance(said, str) else tuple(said)
    if "enum" in node or "const" in node:
        return tuple(dict.fromkeys(map(json_type, allowed_values(node))))
    return ("object",) if "properties" in node else ("array",) if "items" in node else ()


def allowed_values(node: Schema) -> list[Any]:
    """Return the values of a node with `enum` or `const`; else none."""
    return [node["const"]] if "const" in node else list(node.get("enum", ()))


def json_type(value: Any) -> str:
    """Return the name that JSON Schema gives to the type of a parsed value."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else names[type(value)]


def resolve_reference(schema: Schema, reference: str) -> Any:
    """Return what a local `$ref` names in `schema`; None if there is no such definition."""
    if reference == "#":
        return schema
    start, _, name = reference.rpartition("/")
    held = schema.get(start[2:]) if start.startswith("#/") and start[2:] in DEFINITIONS else None
    return (held or {}).get(name.replace("~1", "/").replace("~0", "~"))


def _problems_of_json(schema: Any) -> list[str]:
    """Return what keeps `schema` from being plain JSON of acceptable size, such as dates, cycles and number keys."""
    if not isinstance(schema, dict):
        return [f"root: must be an object, not {type(schema).__name__}"]
    waiting: list[tuple[Any, JsonPath]] = [(schema, ())]
    seen = 0
    while waiting:
        value, place = waiting.pop()
        seen += 1
        if seen > _MOST_NODES or len(place) > _MOST_NESTED:
            return [f"root: larger than {_MOST_NODES:,} values or nested more than {_MOST_NESTED} deep"]
        if isinstance(value, dict):
            if strange := [key for key in value if not isinstance(key, str)]:
                return [f"{_shown(place)}: name {strange[0]!r} is no text; put it in quotes"]
            waiting += [(held, (*place, key)) for key, held in value.items()]
        elif isinstance(value, list):
            waiting += [(held, (*place, str(n))) for n, held in enumerate(value)]
        elif value is not None and not isinstance(value, str | bool | int | float):
            return [f"{_shown(place)}: {value!r} is no JSON value; put it in quotes"]
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:  # not a number, or half a character
        return [f"root: cannot be written as JSON: {str(error)[:120]}"]
    return [f"root: {size:,} bytes as JSON; at most {MAX_BYTES:,} are allowed"] if size > MAX_BYTES else []


def _that_end(schema: Schema) -> set[str]:
    """Return the references (with `#` for the root) under which a finite answer exists: the least fixed point."""
    named = [f"#/{key}/{n.replace('~', '~0').replace('/', '~1')}" for key in DEFINITIONS for n in schema.get(key, ())]
    ends: set[str] = set()

    def is_finite(node: Schema) -> bool:
        if "$ref" in node:
            return node["$ref"] in ends
        if choice := next((key for key in CHOICES if key in node), None):
            return any(map(is_finite, node[choice]))
        kinds = allowed_types(node)
        if kinds == ("object",):
            inside = node.get("properties", {})
            return all(is_finite(inside[name]) for name in node.get("required", ()) if name in inside)
        return kinds != ("array",) or not node.get("minItems") or is_finite(node["items"])

    while more := {ref for ref in ("#", *named) if ref not in ends and is_finite(resolve_reference(schema, ref))}:
        ends |= more
    return ends


class _Way(NamedTuple):
    depth: int
    """Fields and lists around it."""
    refs: frozenset[str]
    """References being written out: one met again has been checked."""
    bare: frozenset[str]
    """Those since the last field or list: one met again says nothing but itself."""


class _Check:
    """A walk over every node that an answer can reach."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.problems: list[str] = []
        self.n_nodes = self.n_properties = self.n_values = 0

    def wrong(self, place: JsonPath, rule: str) -> None:
        line = f"{_shown(place)}: {rule}"
        if line not in self.problems:
            self.problems.append(line)

    def node(self, node: Any, place: JsonPath, way: _Way) -> None:
        self.n_nodes += 1
        if self.n_nodes == _MOST_NODES:
            self.wrong((), f"more than {_MOST_NODES:,} places, references written out")
        if self.n_nodes >= _MOST_NODES or len(self.problems) > _MOST_PROBLEMS:
            return None
        if way.depth > MAX_DEPTH:
            return self.wrong(place, f"more than {MAX_DEPTH} fields and lists inside one another")
        if not isinstance(node, dict):
            return self.wrong(place, "true and false are no schema of a value; say its type")
        self._keywords(node, place)
        if "$ref" in node:
            self._reference(node["$ref"], place, way)
        elif choice := next((key for key in CHOICES if key in node), None):
            self._choice(node, choice, place, way)
        else:
            self._plain(node, place, way)
        return None

    def _keywords(self, node: Schema, place: JsonPath) -> None:
        for key in node:
            if key in ANNOTATIONS or key in KEYWORDS or (key in DEFINITIONS and not place):
                continue
            instead = f"; {_INSTEAD[key]}" if key in _INSTEAD else did_you_mean(key, KEYWORDS)
            self.wrong(place, f'keyword "{key}" cannot be kept by the grammar{instead}')
        alone = [key for key in ("$ref", *CHOICES, "enum", "const") if key in node]
        if alone:
            beside = ("type",) if alone[0] in ("enum", "const") else ()
            if also := [key for key in node if key in KEYWORDS and key != alone[0] and key not in beside]:
                self.wrong(place, f'"{alone[0]}" must stand alone, without "{also[0]}"')

    def _reference(self, reference: str, place: JsonPath, way: _Way) -> None:
        found = None if "%" in reference else resolve_reference(self.schema, reference)
        if found is None:
            known = [f"#/{key}/{name}" for key in DEFINITIONS for name in self.schema.get(key, ())]
            rule = "nothing is fetched, and no definition has this name" + did_you_mean(reference, known)
            self.wrong(place, f'"$ref": "{_short(reference)}": {rule}')
        elif reference in way.bare:
            self.wrong(place, f'"$ref": "{reference}" says nothing but itself')
        elif reference not in way.refs:
            self.node(found, place, way._replace(refs=way.refs | {reference}, bare=way.bare | {reference}))

    def _choice(self, node: Schema, choice: str, place: JsonPath, way: _Way) -> None:
        if choice == "allOf" and len(node[choice]) > 1:
            self.wrong(place, "allOf of several: write them as one schema")
        for n, option in enumerate(node[choice]):
            self.node(option, (*place, choice, str(n)), way)

    def _plain(self, node: Schema, place: JsonPath, way: _Way) -> None:
        kinds = allowed_types(node)
        if not kinds:
            self.wrong(place, "says nothing about the value: give type, enum, const, anyOf or $ref")
        for key in node:
            if kinds and key in _TYPES_OF and not set(_TYPES_OF[key]) & set(kinds):
                self.wrong(place, f'"{key}" is for {" or ".join(_TYPES_OF[key])}, not for {" or ".join(kinds)}')
        if "enum" in node or "const" in node:
            self._values(node, kinds, place)
        else:
            self._limits(node, place)
            inside = way._replace(depth=way.depth + 1, bare=frozenset())
            if "object" in kinds:
                self._object(node, place, inside)
            if "array" in kinds:
                if "items" in node:
                    self.node(node["items"], (*place, "items"), inside)
                else:
                    self.wrong(place, 'a list must say what it holds: "items"')

    def _values(self, node: Schema, kinds: Sequence[str], place: JsonPath) -> None:
        values = allowed_values(node)
        self.n_values += len(values)
        if self.n_values > MAX_ENUM_VALUES:
            self.wrong(place, f"more than {MAX_ENUM_VALUES:,} allowed values in all")
        if not values:
            self.wrong(place, "enum is empty: nothing is allowed")
        for value in values:
            kind = json_type(value)
            if kind not in SCALARS:
                self.wrong(place, f"allowed value {_short(json.dumps(value))} is no text, number, boolean or null")
            elif kind not in kinds and not (kind == "integer" and "number" in kinds):
                self.wrong(place, f"allowed value {_short(json.dumps(value))} is not of type {' or '.join(kinds)}")

    def _limits(self, node: Schema, place: JsonPath) -> None:
        for key in _COUNTS:
            if node.get(key, 0) > MAX_LENGTH:
                self.wrong(place, f'"{key}": {node[key]} is more than {MAX_LENGTH:,}')
        for low, high in _RANGES:
            if low in node and high in node and node[low] > node[high]:
                self.wrong(place, f'"{low}": {node[low]} is above "{high}": {node[high]}')
        if "pattern" in node and (problem := pattern_problem(node["pattern"])):
            self.wrong(place, problem)
        if "format" in node and node["format"] not in _FORMATS:
            near = did_you_mean(node["format"], _FORMATS) or f"; known: {', '.join(_FORMATS)}"
            self.wrong(place, f'format "{_short(node["format"])}" cannot be kept by the grammar{near}')

    def _object(self, node: Schema, place: JsonPath, inside: _Way) -> None:
        fields, others = node.get("properties", {}), node.get("additionalProperties", False)
        if not fields and not isinstance(others, dict):
            self.wrong(place, "an object must name its fields under properties")
        self.n_properties += len(fields)
        if self.n_properties > MAX_PROPERTIES:
            return self.wrong(place, f"more than {MAX_PROPERTIES} fields in all")
        for name in node.get("required", ()):
            if name not in fields and not isinstance(others, dict):
                self.wrong(
                    place, f'required field "{_short(name)}" is not under properties{did_you_mean(name, fields)}'
                )
        for name, field in fields.items():
            self.node(field, (*place, "properties", name), inside)
        if others is True:
            self.wrong(place, "additionalProperties must be false, or the schema of what other fields hold")
        elif others is not False:
            self.node(others, (*place, "additionalProperties"), inside)
        return None


def _shown(place: JsonPath) -> str:
    path = ".".join(place) or "root"
    return path if len(path) <= 120 else f"…{path[-119:]}"  # the end says most


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"
