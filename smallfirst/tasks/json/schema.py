"""JSON schemas of answers: what one may say, the closed form in which it is kept, and its fields as a list.

A schema is bounded, nothing is fetched, and it has only keywords that the grammar enforces.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.progress import one_line
from smallfirst.tasks.json.fields import field_path, list_items_path

Schema = Mapping[str, Any]
JsonPath = tuple[str, ...]

MAX_BYTES = 65_536
"""Largest schema, as JSON."""
MAX_PLACES = 1_500
"""Most places for values (fields, list items, options), references written out."""
MAX_DEPTH = 16
"""Most fields and lists inside one another, references written out."""
MAX_PATTERN_CHARACTERS = 200
MAX_MATCHED_CHARACTERS = 1_000
"""Longest text that a pattern or format is tried on; a longer one does not match."""

SEPARATORS = (", ", ": ")
"""Between items, and between key and value: how canonical answers are spaced, and what the grammar must write."""
LIST = "[]"
"""The step of a way into a list."""
SCALARS = ("string", "integer", "number", "boolean", "null")
CHOICES = ("anyOf", "oneOf", "allOf")
DEFINITIONS = ("$defs", "definitions")
ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
    + ("discriminator", "$comment", "$schema", "$id")
)
"""Keywords that forbid nothing."""
KEYWORDS = frozenset(
    (*CHOICES, "type", "enum", "const", "$ref", "minLength", "maxLength", "pattern", "format")
    + ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    + ("items", "minItems", "maxItems", "properties", "required", "additionalProperties")
)
_MOST_PROBLEMS = 20
_MATCHED_AT_ONCE = 32
"""Bytes of a text matched in one call, which holds the interpreter."""


def check_schema(schema: Any) -> None:
    """Raise ConfigError with place and rule of everything that makes `schema` unusable."""
    problems = _problems_of_json(schema) or _problems_of_form(schema)
    if not problems:
        walk = _Walk(schema)
        if "$ref" in schema or allowed_types(schema) != ("object",):
            walk.wrong((), 'the root must be an object: "type": "object" with "properties"')
        walk.node(schema, (), 0, frozenset({"#"}), frozenset({"#"}))
        problems = walk.problems
    if problems:
        shown = [f"  {line}" for line in problems[:_MOST_PROBLEMS]]
        more = [f"  … and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ConfigError(
            "\n".join(["schema cannot be used:", *shown, *more]),
            hint="fix these places, or leave schema out: it is then inferred from the training rows",
        )


def _problems_of_json(schema: Any) -> list[str]:
    """Return what keeps `schema` from being plain JSON of acceptable size, such as dates, cycles and bare yes or no."""
    if not isinstance(schema, dict):
        return [f"root: must be an object, not {type(schema).__name__}"]
    try:
        text = json.dumps(schema, allow_nan=False)
        n_bytes = len(json.dumps(schema, ensure_ascii=False).encode())
    except (ValueError, TypeError, RecursionError) as error:
        return [f"root: cannot be written as JSON: {error}; put dates in quotes"]
    if n_bytes > MAX_BYTES:
        return [f"root: {n_bytes:,} bytes as JSON; at most {MAX_BYTES:,} are allowed"]
    if json.loads(text) != schema:
        return ["root: a name is no text, such as a bare yes, no or number: put it in quotes"]
    return []


def _problems_of_form(schema: Schema) -> list[str]:
    try:
        errors = Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema)
        return [f"{_shown(tuple(map(str, error.path)))}: {one_line(error.message, 120)}" for error in errors]
    except RecursionError:
        return ["root: nested too deep"]


class _Walk:
    """A walk over every node that an answer can reach, references written out."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self.problems, self.n_places = schema, list[str](), 0

    def wrong(self, place: JsonPath, rule: str) -> None:
        line = f"{_shown(place)}: {rule}"
        if line not in self.problems:
            self.problems.append(line)

    def node(self, node: Any, place: JsonPath, depth: int, refs: frozenset[str], bare: frozenset[str]) -> None:
        """Check a node below `depth` fields and lists.

        References in `refs` are being written out: one met again has been checked. Those in `bare` have been met since
        the last field or list: one met again says nothing but itself.
        """
        self.n_places += 1
        if self.n_places > MAX_PLACES:
            return self.wrong((), f"more than {MAX_PLACES:,} places for values, references written out")
        if len(self.problems) > _MOST_PROBLEMS:
            return None
        if depth > MAX_DEPTH:
            return self.wrong(place, f"more than {MAX_DEPTH} fields and lists inside one another")
        if not isinstance(node, dict):
            return self.wrong(place, "true and false are no schema of a value; say its type")
        self._keywords(node, place)
        if reference := node.get("$ref"):
            if self._may_be_followed(reference, place, bare) and reference not in refs:
                found = resolve_reference(self.schema, reference)
                self.node(found, place, depth, refs | {reference}, bare | {reference})
        elif choice := next((key for key in CHOICES if key in node), None):
            for n, option in enumerate(node[choice]):
                self.node(option, (*place, choice, str(n)), depth, refs, bare)
        else:
            self._value(node, place)
            for name, inside in self._inside(node, place):
                self.node(inside, (*place, *name), depth + 1, refs, frozenset())
        return None

    def _may_be_followed(self, reference: str, place: JsonPath, bare: frozenset[str]) -> bool:
        if "%" in reference or resolve_reference(self.schema, reference) is None:
            known = [f"#/{key}/{name}" for key in DEFINITIONS for name in self.schema.get(key, ())]
            rule = "nothing is fetched, and no definition has this name" + did_you_mean(reference, known)
            self.wrong(place, f'"$ref": "{one_line(reference, 120)}": {rule}')
            return False
        if reference in bare:
            self.wrong(place, f'"$ref": "{reference}" says nothing but itself')
        return reference not in bare

    def _keywords(self, node: Schema, place: JsonPath) -> None:
        for key in node:
            if not (key in ANNOTATIONS or key in KEYWORDS or (key in DEFINITIONS and not place)):
                self.wrong(place, f'keyword "{key}" cannot be kept by the grammar{did_you_mean(key, KEYWORDS)}')
        alone = [key for key in ("$ref", *CHOICES, "enum", "const") if key in node]
        if alone:
            beside = ("type",) if alone[0] in ("enum", "const") else ()
            if also := [key for key in node if key in KEYWORDS and key != alone[0] and key not in beside]:
                self.wrong(place, f'"{alone[0]}" must stand alone, without "{also[0]}"')
        if len(node.get("allOf", ())) > 1:
            self.wrong(place, "allOf of several: write them as one schema")
        if problem := text_problem(node):
            self.wrong(place, problem)

    def _value(self, node: Schema, place: JsonPath) -> None:
        if not allowed_types(node) and "enum" not in node:
            self.wrong(place, "says nothing about the value: give type, enum, const, anyOf or $ref")
        if "enum" in node and not node["enum"]:
            self.wrong(place, "enum is empty: nothing is allowed")
        for value in allowed_values(node):
            if json_type(value) not in SCALARS:
                shown = one_line(json.dumps(value), 120)
                self.wrong(place, f"allowed value {shown} is no text, number, boolean or null")

    def _inside(self, node: Schema, place: JsonPath) -> Iterator[tuple[JsonPath, Any]]:
        """Yield the nodes of what a list or an object holds, each with the end of its place."""
        kinds = () if "enum" in node or "const" in node else allowed_types(node)
        if "array" in kinds:
            if "items" in node:
                yield ("items",), node["items"]
            else:
                self.wrong(place, 'a list must say what it holds: "items"')
        if "object" not in kinds:
            return
        fields, others = node.get("properties", {}), node.get("additionalProperties", False)
        yield from ((("properties", name), field) for name, field in fields.items())
        if isinstance(others, dict):
            yield ("additionalProperties",), others
            return
        if others:
            self.wrong(place, "additionalProperties must be false, or the schema of what other fields hold")
        if not fields:
            self.wrong(place, "an object must name its fields under properties")
        for name in node.get("required", ()):
            if name not in fields:
                near = did_you_mean(name, fields)
                self.wrong(place, f'required field "{one_line(name, 120)}" is not under properties{near}')


def _shown(place: JsonPath) -> str:
    path = ".".join(place) or "root"
    return path if len(path) <= 120 else f"…{path[-119:]}"  # the end says most


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


def alternatives(schema: Schema, node: Schema) -> list[Schema]:
    """Return the nodes that `node` of a checked `schema` offers once references and choices are followed."""
    if "$ref" in node:
        return alternatives(schema, resolve_reference(schema, node["$ref"]))
    if choice := next((key for key in CHOICES if key in node), None):
        return [found for option in node[choice] for found in alternatives(schema, option)]
    return [node]


# Patterns and formats are matched by the engine of the grammars, by derivatives and never by trying: in time linear in
# the text, and within limits for hostile patterns.


def text_problem(node: Schema) -> str | None:
    """Return why an answer cannot be held to a node's `pattern` and `format`; None if it can."""
    if not {"pattern", "format"} & node.keys():
        return None
    if (n := len(node.get("pattern", ""))) > MAX_PATTERN_CHARACTERS:
        return f"pattern of {n:,} characters; at most {MAX_PATTERN_CHARACTERS} are allowed"
    matcher = _text_matcher(node.get("pattern"), node.get("format"))
    return f"cannot be kept by the grammar: {one_line(matcher.get_error(), 120)}" if matcher.is_error() else None


def keeps_text(text: str, node: Schema) -> bool:
    """Return True if a text matches a node's `pattern` and `format`."""
    if len(text) > MAX_MATCHED_CHARACTERS:
        return False
    matcher = _text_matcher(node.get("pattern"), node.get("format")).deep_copy()
    octets = list(json.dumps(text, ensure_ascii=False).encode(errors="replace"))
    pieces = (octets[n : n + _MATCHED_AT_ONCE] for n in range(0, len(octets), _MATCHED_AT_ONCE))
    return all(matcher.consume_tokens(piece) for piece in pieces) and bool(matcher.is_accepting())


@functools.lru_cache(maxsize=256)
def _text_matcher(pattern: str | None, form: str | None) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    node = (
        {"type": "string"} | ({"pattern": pattern} if pattern is not None else {}) | ({"format": form} if form else {})
    )
    limits = LLParserLimits(initial_lexer_fuel=200_000, step_lexer_fuel=20_000)
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(node))
    return LLMatcher(byte_tokenizer(), grammar, log_level=0, limits=limits)


@functools.cache
def byte_tokenizer() -> Any:
    """Return llguidance's tokenizer of single bytes."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def grammar_problem(schema: Schema) -> str | None:
    """Return why llguidance cannot hold an answer to all of a schema, in one line; None if it can."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    _, messages = LLMatcher.validate_grammar_with_warnings(grammar, byte_tokenizer())
    return " ".join(messages[0].split()) if messages else None  # a warning means that some keyword would be ignored


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
            here = FieldSpec(path, kind, nullable, values, required, is_list, about, way)
            found[path] = _merged(found[path], here) if path in found else here

    walk(schema, "", (), True, "", frozenset({"#"}))
    return tuple(found.values())


def _merged(first: FieldSpec, second: FieldSpec) -> FieldSpec:
    """Return what two options of a choice say about one place."""
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


ENUM_MIN_VALUES = 50
"""Fewest texts that a place must have held before a few that repeat are taken for all there are."""
ENUM_MAX_DISTINCT = 12
"""Most different texts of a closed list."""
ENUM_MIN_REPEATS = 5
"""Fewest times that each was seen. The chance that the next one is new is about the share of those seen once (Good
1953), here none."""
ENUM_MAX_CHARACTERS = 60
"""Longest text of a closed list."""

_MOST_DEPTH = 64  # far more than check_schema takes; keeps the walk itself from running out of stack


def infer_schema(values: Sequence[Any]) -> dict[str, Any]:
    """Return a closed schema that all `values` follow. Raise ConfigError if they are no objects with fields."""
    for n, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ConfigError(
                f"no schema can be guessed: every answer must be an object of fields; row {n} is {str(value)[:60]!r}",
                hint='write answers as {"field": "value"}, or take kind: answer',
            )
    if not any(values):
        raise ConfigError(
            f"no schema can be guessed: none of {len(values)} rows has a field",
            hint="write the schema into the task file",
        )
    return _object(values, 1)


def _node(values: Sequence[Any], depth: int) -> dict[str, Any]:
    if depth > _MOST_DEPTH:
        raise ConfigError(f"no schema can be guessed: an answer is nested more than {_MOST_DEPTH} deep")
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    texts = [value for value in values if isinstance(value, str)]
    kinds = _scalar_types(values)
    options: list[dict[str, Any]] = []
    if texts and (listed := _few(texts)) and set(kinds) <= {"string", "null"}:
        options.append({"enum": [*listed, None] if "null" in kinds else listed})
    elif kinds:
        options.append({"type": kinds[0] if len(kinds) == 1 else kinds})
    if lists:
        items = [item for value in lists for item in value]
        options.append({"type": "array", "items": _node(items, depth + 1) if items else {"type": "string"}})
    if objects:
        options.append(_object(objects, depth + 1))
    return options[0] if len(options) == 1 else {"anyOf": options}


def _object(values: Sequence[dict[str, Any]], depth: int) -> dict[str, Any]:
    by_name: dict[str, list[Any]] = {}
    for value in values:
        for name, held in value.items():
            by_name.setdefault(name, []).append(held)
    return {
        "type": "object",
        "properties": {name: _node(held, depth) for name, held in by_name.items()},
        "required": [name for name, held in by_name.items() if len(held) == len(values)],
        "additionalProperties": False,
    }


def _scalar_types(values: Sequence[Any]) -> list[str]:
    """Return the scalar types of `values`; whole numbers are numbers where others are not whole."""
    seen = {type(value) for value in values}
    number = ["number"] if float in seen else ["integer"] if int in seen else []
    named = {str: "string", bool: "boolean", type(None): "null"}
    return [named[str]] * (str in seen) + number + [named[kind] for kind in (bool, type(None)) if kind in seen]


def _few(texts: Sequence[str]) -> list[str]:
    """Return the different texts, most frequent first, if they look like a closed list; else empty."""
    counts = Counter(texts)
    closed = (
        len(texts) >= ENUM_MIN_VALUES
        and len(counts) <= ENUM_MAX_DISTINCT
        and min(counts.values()) >= ENUM_MIN_REPEATS
        and max(map(len, counts)) <= ENUM_MAX_CHARACTERS
    )
    return [text for text, _ in counts.most_common()] if closed else []
