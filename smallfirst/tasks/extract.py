"""Fields of a JSON schema, extracted from a text: one JSON object in canonical form, written under a grammar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.stats.intervals import Estimate
from smallfirst.data.dataset import Dataset, RowFormat
from smallfirst.tasks.json.answers import answer_parser
from smallfirst.tasks.json.fields import counts_by_field, field_metrics, field_score, wrong_fields
from smallfirst.tasks.json.schema import (
    SCALARS,
    FieldSpec,
    Schema,
    allowed_types,
    alternatives,
    check_schema,
    closed_schema,
    infer_schema,
    list_fields,
)
from smallfirst.tasks.task import PartCounts, ScoredAnswer, Task
from smallfirst.tasks.value_matching import Normalizer

_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}


class Extract(Task):
    """Fields to be read out of texts."""

    row_formats: ClassVar[tuple[RowFormat, ...]] = ("target",)
    part: ClassVar[Literal["field"]] = "field"
    pass_score: ClassVar[float] = 1.0

    kind: Literal["extract"] = "extract"
    json_schema: dict[str, Any]
    """JSON schema of an answer (see `tasks.json.schema` for what it may contain), kept in its closed form. A task file
    says `schema:`, inline or a file; left out: inferred from the training rows."""
    normalise: dict[str, Normalizer] = {}
    """How values are compared, by field path (`date`, `items[].price`); as they stand where nothing is said."""
    max_answer_tokens: int = pydantic.Field(default=192, ge=1, le=4096)

    @pydantic.field_validator("json_schema", mode="before")
    @classmethod
    def _schema_is_usable(cls, schema: Any) -> dict[str, Any]:
        check_schema(schema)
        return closed_schema(schema)

    @pydantic.model_validator(mode="after")
    def _normalise_names_fields(self) -> Extract:
        paths = [field.path for field in self.fields]
        wrong = [f'"{path}"{did_you_mean(path, paths)}' for path in self.normalise if path not in paths]
        if wrong:
            raise ValueError(f"normalise names fields that the schema has not: {', '.join(wrong)}")
        return self

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        """Every place for a value, in schema order."""
        return list_fields(self.json_schema)

    @classmethod
    def setting_names(cls) -> frozenset[str]:
        return super().setting_names() | {"schema"}

    @classmethod
    def expand_settings(cls, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Read `schema`, a JSON schema or the name of a file. Raise ConfigError if the file is not readable."""
        if "schema" not in settings:
            return settings
        schema = settings["schema"]
        rest = {name: value for name, value in settings.items() if name != "schema"}
        return rest | {"json_schema": _read_schema(folder / schema) if isinstance(schema, str) else schema}

    @classmethod
    def complete_settings(cls, settings: dict[str, Any], train: Dataset, others: Sequence[Dataset]) -> dict[str, Any]:
        """Infer the schema from the training rows if the file has none. Raise ConfigError if they allow none."""
        if settings.get("json_schema"):
            return settings
        return settings | {"json_schema": infer_schema([json.loads(e.answer) for e in train.examples])}

    def target(self, answer: str) -> str:
        """Return the canonical JSON as it is: the first bracket follows the cue, as the grammar writes it."""
        return answer

    def system_message(self) -> str:
        fields = self.fields
        lines = [self.about or "Read the user's message and give its fields."]
        if _can_be_listed(self.json_schema):
            lines.append("Answer with one JSON object of these fields, and nothing else:")
            lines += map(_field_line, fields)
        else:
            lines.append("Answer with one JSON object that follows this JSON schema, and nothing else:")
            lines.append(json.dumps(self.json_schema, ensure_ascii=False, separators=(",", ":")))
        if any(not field.required for field in fields):
            lines.append("Leave out a field that the message says nothing about.")
        if any(field.required and field.nullable for field in fields):
            lines.append("A field that must be there is null if the message says nothing about it.")
        return "\n".join(lines)

    def answer_schema(self) -> dict[str, Any]:
        return self.json_schema

    def parse(self, text: str) -> str | None:
        """Return the first whole JSON object in `text` that the schema allows, in canonical form."""
        return answer_parser(json.dumps(self.json_schema)).read(text)

    def score(self, golds: Sequence[str], answer: str | None) -> float:
        """Return 1 if every field is right; else the F1 over fields, below 1, best over the gold answers."""
        return field_score(golds, answer, self.normalise)

    def wrong_fields(self, golds: Sequence[str], answer: str | None) -> tuple[str, ...]:
        """Return the top-level fields that differ from the nearest gold answer; all of them without an answer."""
        return wrong_fields(tuple(self.json_schema["properties"]), golds, answer, self.normalise)

    def measures(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        return field_metrics(rows, self.normalise)

    def parts(self, rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
        return counts_by_field([field.path for field in self.fields], rows, self.normalise)


def _read_schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"schema: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"schema: {path}: not readable as JSON: {error}") from None


def _can_be_listed(schema: Schema) -> bool:
    """Return True if each field holds scalars, or a list of scalars, and there are no others."""
    for field in schema.get("properties", {}).values():
        options = [option for option in alternatives(schema, field) if allowed_types(option) != ("null",)]
        lists = [option for option in options if "array" in allowed_types(option)]
        if lists and (len(lists) < len(options) or any(set(allowed_types(one)) - {"array", "null"} for one in lists)):
            return False
        held = [item for one in lists for item in alternatives(schema, one["items"])] if lists else options
        if not all(set(allowed_types(one)) <= {*SCALARS} for one in held):
            return False
    return not schema["additionalProperties"]


def _field_line(field: FieldSpec) -> str:
    if field.enum:
        allowed = ", ".join(json.dumps(value, ensure_ascii=False) for value in field.enum)
        what = f"list, each one of {allowed}" if field.is_list else f"one of {allowed}"
    else:
        kinds = " or ".join(_WORDS[kind] for kind in field.type.split("|"))
        what = f"list of {kinds}" if field.is_list else kinds
    more = [what, *["or null"] * field.nullable, *["always there"] * field.required]
    return f"- {field.path}: {', '.join(more)}" + (f" ({field.about})" if field.about else "")
