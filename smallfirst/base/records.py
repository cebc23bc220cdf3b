"""The base of all records: frozen, read from and written to JSON, with a fingerprint.

A stage passes a record to the next one. It is plain data, so it can be stored, compared and traced. Unknown keys are
refused with a suggestion; `record.model_copy(update=…)` makes a changed copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import pydantic

from smallfirst.base.errors import ConfigError, Problem, did_you_mean
from smallfirst.base.files import write_atomically

R = TypeVar("R", bound="Record")

SETTINGS_PROBLEM = "settings_problem"
"""Type of a pydantic error whose message names its own places."""


_MOST_SHOWN, _REPR_CHARACTERS = 5, 120
"""Items of a list, and characters of a value, that a record's `repr` shows."""


class Record(pydantic.BaseModel):
    """Frozen data with a docstring under each field."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what differs from the defaults, long values shortened."""
        for name, value in super().__repr_args__():
            field = type(self).model_fields.get(name or "")
            if field is None or field.default_factory is not None or value != field.default:
                yield name, _Shortened(value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with changes, and without what a `cached_property` found before them."""
        copy = super().model_copy(update=update, deep=deep)
        fields = type(self).__pydantic_fields__
        if len(copy.__dict__) > len(fields):
            for name in copy.__dict__.keys() - fields.keys():
                del copy.__dict__[name]
        return copy

    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON: equal content, equal fingerprint."""
        return fingerprint(self.model_dump(mode="json"))

    def save(self, path: Path) -> Path:
        """Write as JSON, atomically (a reader sees the old file or the new one, never half)."""
        return write_atomically(path, self.model_dump_json(indent=2).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved record. Raise ConfigError naming the file and the field."""
        return cls.from_json(path.read_bytes(), where=str(path))

    @classmethod
    def from_json(cls, content: bytes, *, where: str) -> Self:
        """Read a record that was saved at `where`. Raise ConfigError naming the place and the field."""
        try:
            values = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"{where}: not readable as JSON: {error}") from None
        try:
            return parse_record(cls, values, where=where)
        except ConfigError as error:
            raise ConfigError(
                error.args[0],
                hint="another version of smallfirst may have written it:  smallfirst run TASK  makes it anew",
            ) from None


class _Shortened:
    """A value whose `repr` is one short line: the whole one may be a file of rows."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        if isinstance(self._value, (tuple, list, dict)) and len(self._value) > _MOST_SHOWN:
            return f"<{len(self._value):,} items>"
        text = repr(self._value)
        return text if len(text) <= _REPR_CHARACTERS else f"{text[:_REPR_CHARACTERS]}…"


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()[:16]


def parse_record(kind: type[R], values: Mapping[str, Any], *, where: str) -> R:
    """Build a record of `kind` from plain values. Raise ConfigError listing every wrong field of `where`."""
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}:\n  " + "\n  ".join(explain_errors(kind, error))) from None


def read_yaml(path: Path, *, hint: str | None = None) -> dict[str, Any]:
    """Return the settings in a file by name, none of an empty one. Raise ConfigError if it holds something else."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}", hint=hint) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings by name, found {type(values).__name__}", hint=hint)
    return values


def parse_json_lines(kind: type[R], text: str, path: str) -> tuple[list[tuple[int, R]], list[Problem]]:
    """Return (line number, record) for each line of JSON that is not blank, and a Problem for each invalid one."""
    records, problems = [], []
    for line, content in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is text
        if not content.strip():
            continue
        try:
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError("not an object")
            records.append((line, kind.model_validate(values)))
        except pydantic.ValidationError as error:
            problems.append(Problem(path, line, "; ".join(explain_errors(kind, error))))
        except ValueError as error:
            problems.append(Problem(path, line, f"not readable as JSON: {error}"))
    return records, problems


def explain_errors(
    kind: type[Record],
    error: pydantic.ValidationError,
    *,
    partial: bool = False,
    names: Iterable[str] = (),
    whole: type[Record] | None = None,
) -> list[str]:
    """Return one line for each wrong field; `names` are further known fields, `whole` the record of the whole file.

    `partial` leaves out missing fields and rules between fields.
    """
    found = [dict(problem) for problem in error.errors()]
    if partial:
        found = [problem for problem in found if problem["loc"] and problem["type"] != "missing"]
    return [_explain(kind, problem, names, whole or kind) for problem in found]


def _explain(kind: type[Record], problem: dict[str, Any], more_names: Iterable[str], whole: type[Record]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == SETTINGS_PROBLEM:
        return str(problem["msg"])
    if problem["type"] == "extra_forbidden":
        names = [*field_names_at(kind, problem["loc"][:-1]), *more_names]
        name = str(problem["loc"][-1])
        elsewhere = _place_of(name, whole)
        return f"{place}: unknown setting{f'; write {elsewhere}' if elsewhere else did_you_mean(name, names)}"
    if problem["type"] == "missing":
        return f"{place}: missing"
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{place}: {said}" if place else said  # a rule between fields: the rule says what is wrong
    return f"{place}: {said} (got {problem['input']!r})"


def _place_of(name: str, record: type[pydantic.BaseModel], *, depth: int = 4) -> str:
    """Return where a record, or one in it, has a field of this name, as `group: {name: …}`; empty without one."""
    if name in record.model_fields:
        return f"{name}: …"
    for group, field in record.model_fields.items():
        for inside in _records_in(field.annotation) if depth else ():
            if found := _place_of(name, inside, depth=depth - 1):
                return f"{group}: {{{found}}}"
    return ""


def field_names_at(kind: type[pydantic.BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the record found by walking `path` from `kind`, as far as it can be walked."""
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None:
            continue
        nested = next(_records_in(field.annotation), None)
        if nested is None:
            return []
        kind = nested
    return list(kind.model_fields)


def _records_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _records_in(part)
