"""Count valid answers under schemas, hard ones included, and show the errors for broken or hostile schemas.

    python -m benchmarks.serving.schemas [ROWS.jsonl]

An untouched SmolLM2-135M-Instruct, which knows nothing of the schemas, writes 1,000 answers: ten schemas, a hundred
requests each, half greedy, half drawn at temperature 1.2, with room for 96 tokens. Every answer is parsed as the task
parses it and checked with `jsonschema` against the schema as the user wrote it. Texts are the first column `text` of
ROWS.jsonl, else numbered sentences. Writes benchmarks/results/schemas.md; about two minutes on two cores.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks.paths import RESULTS
from smallfirst.errors import ConfigError
from smallfirst.models.catalog import find_weights
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.local.weights import load_causal
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.schema import check_schema

EACH = 100
ROOM = 96
RESULT = RESULTS / "schemas.md"


def thing(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """Return an object schema; every field is required unless told otherwise."""
    wanted = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": wanted, "additionalProperties": False}


TEXT, NUMBER = {"type": "string"}, {"type": "number"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "five free texts, none required": thing([], people=TEXT, time=TEXT, date=TEXT, first_name=TEXT, last_name=TEXT),
    "nullable enum and integer range": thing(
        size={"enum": ["small", "large", None]}, n={"type": "integer", "minimum": 3, "maximum": 12}
    ),
    "lists of objects": thing(items={"type": "array", "items": thing(name=TEXT, price=NUMBER), "maxItems": 4}),
    "lists of lists, at least two": thing(
        rows={"type": "array", "minItems": 2, "maxItems": 3, "items": {"type": "array", "items": NUMBER, "maxItems": 3}}
    ),
    "keys with quotes, dots and no Latin": thing(**{'a "b"': TEXT, "c.d[0]": {"type": "boolean"}, "größe": TEXT}),
    "pattern and date": thing(
        code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, day={"type": "string", "format": "date"}
    ),
    "text of 20 to 24 characters": thing(s={"type": "string", "minLength": 20, "maxLength": 24}),
    "one of three shapes": thing(v={"anyOf": [NUMBER, thing(w=TEXT), {"type": "null"}]}),
    "a tree that refers to itself": {
        **thing(root={"$ref": "#/$defs/node"}),
        "$defs": {"node": thing(["name"], name={"enum": ["a", "b"]}, left={"$ref": "#/$defs/node"})},
    },
    "sixty required fields": thing(**{f"field_{i}": {"enum": ["yes", "no"]} for i in range(60)}),
}


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(levels):
        schema = thing(a=schema)
    return schema


HOSTILE: dict[str, Any] = {
    "no object at the root": {"type": "array", "items": TEXT},
    "not a schema": {"type": "object", "properties": {"a": {"type": "text"}}},
    "remote reference": thing(a={"$ref": "https://example.com/schema.json"}),
    "file reference": thing(a={"$ref": "file:///etc/passwd"}),
    "reference to nothing": thing(a={"$ref": "#/$defs/none"}),
    "endless answer": {**thing(a={"$ref": "#/$defs/x"}), "$defs": {"x": thing(a={"$ref": "#/$defs/x"})}},
    "900 levels": _deep(900),
    "17 levels": _deep(17),
    "100,000 fields": thing(**{f"f{i}": TEXT for i in range(100_000)}),
    "501 fields": thing(**{f"f{i}": TEXT for i in range(501)}),
    "2,001 allowed values": thing(a={"enum": [f"v{i}" for i in range(2_001)]}),
    "evil pattern": thing(a={"type": "string", "pattern": "^(a+)+$"}),
    "pattern with look-ahead": thing(a={"type": "string", "pattern": "^(?=x)y"}),
    "keyword that no grammar keeps": thing(a={"type": "array", "items": TEXT, "uniqueItems": True}),
    "impossible range": thing(a={"type": "integer", "minimum": 5, "maximum": 4}),
}


def main() -> None:
    texts = [f"Please book {i} things for day {i}." for i in range(EACH)]
    if len(sys.argv) > 1:
        texts = [json.loads(line)["text"] for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()][:EACH]
    model, tokenizer = load_causal(find_weights("HuggingFaceTB/SmolLM2-135M-Instruct"))
    writer = Generator(model, tokenizer)
    lines, valid, closed, n, began = [], 0, 0, 0, time.perf_counter()
    for name, schema in SCHEMAS.items():
        task = Extract(name="bench", json_schema=schema)
        grammar = Grammar.compile(task.answer_schema(), tokenizer)
        asks = [
            GenerationRequest(
                encode_prompt(tokenizer, task.prompt(text), 512), ROOM, 1.2 * (i % 2), seed=i, grammar=grammar
            )
            for i, text in enumerate(texts)
        ]
        written = writer.generate(asks)
        good = sum(_valid(task, schema, w.text) for w in written)
        cut = sum(w.finish_reason == "length" for w in written)
        valid, closed, n = valid + good, closed + cut, n + len(written)
        lines.append(f"| {name} | {good} of {len(written)} | {cut} |")
        print(lines[-1], flush=True)
    seconds = time.perf_counter() - began
    refused = [f"| {name} | {_refusal(schema)} |" for name, schema in HOSTILE.items()]
    print("\n".join(refused))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    RESULT.write_text(
        f"# Answers under a schema\n\n`python -m benchmarks.serving.schemas`, {date.today().isoformat()}, {machine}.\n\n"
        f"**{valid} of {n} answers valid**, written in {seconds:.0f} s ({n / seconds:.1f} a second). «Closed» counts "
        "answers that ran out of room and were ended the grammar's shortest way: valid, finish reason `length`.\n\n"
        "| schema | valid | closed |\n|---|---|---|\n"
        + "\n".join(lines)
        + "\n\n## What a broken or hostile schema gets\n\nEach is refused before anything is compiled or fetched.\n\n"
        "| schema | answer |\n|---|---|\n" + "\n".join(refused) + "\n",
        encoding="utf-8",
    )


def _valid(task: Extract, schema: dict[str, Any], text: str) -> bool:
    """Return True if the task can parse the answer and the user's own schema validates it."""
    if task.parse(text) is None:
        return False
    return not list(jsonschema.Draft202012Validator(schema).iter_errors(json.loads(text)))


def _refusal(schema: Any) -> str:
    began = time.perf_counter()
    try:
        check_schema(schema)
    except ConfigError as error:
        said = " ".join(str(error).split("next:")[0].removeprefix("schema cannot be used:").split())
        return f"{said[:220].replace('|', '/')}{'…' if len(said) > 220 else ''} ({time.perf_counter() - began:.2f} s)"
    return "**accepted**"


if __name__ == "__main__":
    main()
