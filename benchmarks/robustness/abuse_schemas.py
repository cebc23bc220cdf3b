"""Hostile schemas, endless patterns, invalid model names, and bodies for the other routes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from benchmarks.robustness.abuse_bodies import ANSWERED_OR_REFUSED, REFUSED, WRONG, Made, grouped
from benchmarks.robustness.abuse_wire import Attack, chat, http


def all_schemas(draw: random.Random) -> Iterator[Attack]:
    """Yield every attack by a schema, by the name of a model, or on another route."""
    return grouped(
        {
            "schemas": _schemas(),
            "patterns": _patterns(),
            "model names": _names(),
            "other routes": _routes(draw),
        }
    )


def _form(schema: Any, name: Any = "s") -> bytes:
    return http(
        body=chat(
            response_format={"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}},
            max_tokens=8,
        )
    )


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _schemas() -> Made:
    string = {"type": "string"}
    doubled = {f"d{n}": _object(a={"$ref": f"#/$defs/d{n + 1}"}, b={"$ref": f"#/$defs/d{n + 1}"}) for n in range(14)}
    nested: Any = string
    for _ in range(200):
        nested = {"type": "object", "properties": {"a": nested}}
    bombs: list[Any] = [
        nested,
        {**_object(x={"$ref": "#/$defs/d0"}), "$defs": {**doubled, "d14": string}},
        {"allOf": [{} for _ in range(12_000)]},
    ]
    bombs += [
        _object(a={"enum": [f"v{n}" for n in range(60_000)]}),
        _object(**{f"k{n}": string for n in range(5_000)}),
        {"$ref": "#"},
    ]
    bombs += [
        _object(a={"$ref": ref})
        for ref in ("http://169.254.169.254/", "file:///etc/passwd", "#/a/../b", "other.json", "#/$defs/no", "", "#")
    ]
    bombs += [
        {**_object(a={"$ref": "#/$defs/a"}), "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        _object(a=_object(a={"$ref": "#"})),
    ]
    bombs += [
        _object(a={"anyOf": [_object(**{f"f{n}": string}) for n in range(900)]}),
        _object(a={"type": "array", "items": string, "minItems": 10**9}),
    ]
    bombs += [
        _object(a={**string, "maxLength": 10**12}),
        _object(a={**string, "minLength": -1}),
        _object(a={"type": "number", "minimum": 10**300}),
    ]
    bombs += [
        {},
        [],
        "x",
        1,
        None,
        True,
        {"type": 5},
        {"type": "object", "required": {}},
        {"properties": []},
        {"enum": []},
        {"const": None},
    ]
    bombs += [_object(a={"type": kind}) for kind in ("integre", "", ["string"] * 100, {}, None)] + [
        {"$id": "http://x/", **_object(a=string)}
    ]
    bombs += [
        _object(**{"a\r\nX: 1": string}),
        _object(**{"\u0000": string}),
        _object(**{"k" * 10_000: string}),
        {"$dynamicRef": "#x"},
        {"if": {}, "then": {}},
    ]
    bombs += [
        _object(a={"not": {}}),
        {"patternProperties": {"(a+)+$": {}}},
        {"propertyNames": {"pattern": "("}},
        {"$schema": "http://127.0.0.1:1/"},
    ]
    deep = _form(string).replace(b'{"type": "string"}', b'{"properties": {"a": ' * 10_000 + b"{}" + b"}}" * 10_000)
    yield "10,000 deep", http(body=deep.partition(b"\r\n\r\n")[2]), REFUSED
    for schema in bombs:
        yield str(schema)[:40], _form(schema), ANSWERED_OR_REFUSED
    for name in ("", "a b", "a" * 100, "../x", 5, None, "a\r\nb"):
        yield f"name {str(name)[:8]!r}", _form(_object(a=string), name), REFUSED
    forms: list[Any] = [
        "json",
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "grammar", "grammar": "root ::= root"},
        [],
        {"type": "regex", "regex": "a"},
    ]
    for form in forms:
        yield str(form)[:30], http(body=chat(response_format=form)), REFUSED


def _patterns() -> Made:
    bad = [
        "(a+)+$",
        "(a|a)*$",
        "^(a|aa)+$",
        "(.*)*x",
        "(" * 500,
        "a{1000}{1000}{1000}",
        "(?=a)",
        "(a)\\1",
        "[",
        "*",
        "(?P<n>",
        "\\p{L}+",
        "(?i)a",
        "a" * 5000,
    ]
    for pattern in [
        *bad,
        "^(([a-z])+.)+[A-Z]([a-z])+$",
        "(x+x+)+y",
        "(?<=a)b",
        "\\",
        "[z-a]",
        "(?R)",
        "^(?:(?:a?){30}){30}a{30}$",
    ]:
        yield pattern[:30], _form(_object(a={"type": "string", "pattern": pattern})), ANSWERED_OR_REFUSED


def _names() -> Made:
    names = [
        "../../etc/passwd",
        "..",
        "/etc/passwd",
        "tiny\u0000",
        "tiny\r\nX-Injected: 1",
        "a" * 256,
        "a" * 100_000,
        "__class__",
        "models:/x@champion",
    ]
    names += [
        "http://localhost:1/",
        "file:///etc/passwd",
        "TINY",
        "tiny ",
        " tiny",
        "t\u0456ny",
        "tiny/../flood",
        "%74iny",
        "${jndi:ldap://x}",
        "*",
        "ft:x:y:z",
    ]
    for name in [*names, "' OR 1=1 --", "\ud83d\ude00", "tiny;flood", "tiny,flood", "\x1b[31m", "D:\\x", "-", "."]:
        yield repr(name[:30]), http(body=chat(model=name)), frozenset({400, 404})


def _routes(draw: random.Random) -> Made:
    usual: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "tiny", "prompt": "where", "max_tokens": 2},
        "/v1/embeddings": {"model": "tiny", "input": "where"},
        "/v1/score": {"model": "tiny", "input": "where"},
        "/invocations": {"messages": [{"role": "user", "content": "x"}], "inputs": ["x"]},
        "/v1/feedback": {"id": "chatcmpl-0", "verdict": "right", "answer": "x"},
    }
    for route, body in usual.items():
        for field in body:
            for value in draw.sample(WRONG, 6):
                yield (
                    f"{route} {field}={str(value)[:12]}",
                    http(route, body=json.dumps({**body, field: value}).encode()),
                    ANSWERED_OR_REFUSED,
                )
        for raw in (b"[]", b"[" * 20_000, b'{"input":[' + b'"a",' * 100_000 + b'"a"]}', b"{}", b"\xff", b""):
            yield f"{route} {raw[:12]!r}", http(route, body=raw), REFUSED
        many = json.dumps(
            {
                **body,
                "prompt": ["a"] * 5000,
                "input": ["a"] * 5000,
                "inputs": ["a"] * 5000,
                "dataframe_records": [{"a": 1}] * 5000,
            }
        )
        yield f"{route} many", http(route, body=many.encode()), REFUSED
