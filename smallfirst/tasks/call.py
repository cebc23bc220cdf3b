"""The next function call of an assistant, out of the functions that it is given; text, or several calls, are no call.

A row is a conversation up to a turn of the assistant. A call is right if its function and every argument are those of
the row's, each compared without case and white space unless `normalise` says otherwise. A turn that is none of one call
is `NO_CALL`; a model that says so has nothing to answer with, and the large model is asked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from smallfirst.base.errors import ConfigError, DataError, did_you_mean
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.conversations import NO_CALL, changed_functions, finite, properties_of, read_functions, write_call
from smallfirst.data.dataset import Dataset, Example, RowFormat
from smallfirst.tasks.task import PartCounts, ScoredAnswer, Task
from smallfirst.tasks.value_matching import Normalizer, normalize_value


class FunctionLimit(Record):
    """What is promised of the calls of one function."""

    max_error: float = pydantic.Field(gt=0, lt=1)
    """Largest share of its small calls that may be wrong, in (0, 1), in place of the guarantee's."""


class Call(Task):
    """An assistant's next function call."""

    row_formats: ClassVar[tuple[RowFormat, ...]] = ("call",)
    part: ClassVar[Literal["label"]] = "label"
    pass_score: ClassVar[float] = 1.0
    request_noun: ClassVar[str] = "turns"
    no_answer: ClassVar[str | None] = NO_CALL
    answered_noun: ClassVar[str] = "calls"
    held_out: ClassVar[tuple[float, float] | None] = (0.35, 0.2)
    """A caller learns from few conversations, while the promise about its calls takes many."""

    kind: Literal["call"] = "call"
    tools: tuple[dict[str, Any], ...]
    """The functions: name, description and a JSON schema of the parameters, as OpenAI or Anthropic write them. A task
    file names a JSON file or lists them; left out: those of the rows."""
    normalise: dict[str, Normalizer] = {}
    """How arguments are compared, by `argument` or `function.argument`; without case and white space where nothing is
    said."""
    functions: dict[str, Literal["never"] | FunctionLimit] = {}
    """Functions that are never called small, such as what cannot be undone (`{pay: never}`), or under a limit of their
    own (`{cancel: {max_error: 0.01}}`)."""
    max_answer_tokens: int = pydantic.Field(default=256, ge=1, le=4096)

    @pydantic.field_validator("tools", mode="before")
    @classmethod
    def _tools_are_functions(cls, tools: Any) -> tuple[dict[str, Any], ...]:
        return read_functions(tools)

    @pydantic.model_validator(mode="after")
    def _settings_name_functions(self) -> Call:
        paths = {
            path
            for tool in self.tools
            for name in properties_of(tool["parameters"])
            for path in (name, f"{tool['name']}.{name}")
        }
        wrong = [
            f'functions: no function "{name}"{did_you_mean(name, self.names)}'
            for name in self.functions
            if name not in self.names
        ]
        wrong += [
            f'normalise: no argument "{path}"{did_you_mean(path, sorted(paths))}'
            for path in self.normalise
            if path not in paths
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the functions, in alphabetical order."""
        return tuple(str(tool["name"]) for tool in self.tools)

    @classmethod
    def expand_settings(cls, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Read `tools`, if it is the name of a file. Raise ConfigError if that is not readable."""
        if not isinstance(name := settings.get("tools"), str):
            return settings
        try:
            return settings | {"tools": json.loads((folder / name).read_text(encoding="utf-8"))}
        except (OSError, ValueError) as error:
            raise ConfigError(f"tools: {folder / name}: not readable as JSON: {error}") from None

    @classmethod
    def complete_settings(cls, settings: dict[str, Any], train: Dataset, others: Sequence[Dataset]) -> dict[str, Any]:
        """Take the functions of the rows if the file names none. Raise DataError if the rows have none."""
        if settings.get("tools"):
            return settings
        found = {example.tools: example for part in (train, *others) for example in part.examples if example.tools}
        if not found:
            raise DataError("no row has tools", hint="give each row its tools, or name them under tools: in task.yaml")
        return settings | {"tools": json.loads(next(iter(found)))}

    def parameters(self, name: str) -> Mapping[str, Any]:
        """Return the schemas of a function's arguments by name."""
        return next((properties_of(tool["parameters"]) for tool in self.tools if tool["name"] == name), {})

    def required(self, name: str) -> frozenset[str]:
        """Return the arguments that each call of a function must have."""
        return frozenset(
            next((tool["parameters"].get("required", ()) for tool in self.tools if tool["name"] == name), ())
        )

    def is_never_small(self, name: str) -> bool:
        """Return True if a function is never called by a small model."""
        return self.functions.get(name) == "never"

    @property
    def limits(self) -> dict[str, float]:
        """By function the largest share of wrong calls, where it has a limit of its own."""
        return {name: own.max_error for name, own in self.functions.items() if isinstance(own, FunctionLimit)}

    def row_rule(self, example: Example) -> str:
        """Return how the functions of a row differ from the task's."""
        other = _changed(json.dumps(self.tools), example.tools) if example.tools else ""
        return f"other functions than the task's: {other}" if other else ""

    def target(self, answer: str) -> str:
        return answer

    def system_message(self) -> str:
        lines = [self.about or "You continue a conversation, which is given a JSON line for each turn."]
        lines.append("Answer with one call of a function as JSON, or with text if no call is due. The functions:")
        lines += [json.dumps(tool, ensure_ascii=False) for tool in self.tools]
        lines.append('A call is written {"name": "…", "arguments": {…}} and nothing else.')
        return "\n".join(lines)

    def parse(self, text: str) -> str | None:
        """Return the call in canonical form, NO_CALL for text; None for a call of another function."""
        try:
            read = json.loads(text, parse_constant=finite, parse_float=finite)
        except (ValueError, RecursionError):
            return NO_CALL
        if not isinstance(read, dict) or "name" not in read:
            return NO_CALL
        arguments = read.get("arguments", {})
        return (
            write_call(read["name"], arguments) if read["name"] in self.names and isinstance(arguments, dict) else None
        )

    def compared(self, answer: str) -> object:
        """Return what represents an answer in comparisons: equal for calls that count as one."""
        if answer == NO_CALL:
            return NO_CALL
        read = json.loads(answer)
        name = read["name"]
        how = {key: self.normalise.get(f"{name}.{key}", self.normalise.get(key, "case")) for key in read["arguments"]}
        return name, tuple((key, _normal(value, how[key])) for key, value in sorted(read["arguments"].items()))

    def score(self, golds: Sequence[str], answer: str | None) -> float:
        """Return 1 if function and every argument are right, or both are no call; else 0."""
        return float(answer is not None and self.compared(answer) in map(self.compared, golds))

    def measures(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        """Return the shares of calls made that are right, of calls due that are made right, and of right functions."""
        said = [row for row in rows if row.answer not in (None, NO_CALL)]
        due = [row for row in rows if row.golds[0] != NO_CALL]
        right = [row for row in said if row.score >= 1]
        acts = sum(function_of(row.answer) in map(function_of, row.golds) for row in rows)
        return {
            "call_precision": wilson(len(right), len(said)),
            "call_recall": wilson(len(right), len(due)),
            "function_accuracy": wilson(acts, len(rows)),
        }

    def parts(self, rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
        """Return counts by function; a call is right if all its arguments are."""
        found = []
        for name in (*self.names, NO_CALL):
            gold = [row for row in rows if function_of(row.golds[0]) == name]
            said = [row for row in rows if function_of(row.answer) == name]
            right = sum(row.score >= 1 for row in said)
            found.append(PartCounts(name=name, n_gold=len(gold), n_said=len(said), n_right=right))
        return tuple(found)


def function_of(answer: str | None) -> str:
    """Return the function that an answer in canonical form calls, NO_CALL for a text; empty without an answer."""
    try:
        return str(json.loads(answer)["name"]) if answer else ""
    except (ValueError, TypeError, KeyError, RecursionError):
        return NO_CALL


@functools.lru_cache(maxsize=256)
def _changed(known: str, others: str) -> str:
    return changed_functions(json.loads(known), json.loads(others))


def _normal(value: Any, how: Normalizer) -> object:
    if isinstance(value, dict):
        return tuple((key, _normal(one, how)) for key, one in sorted(value.items()))
    return tuple(_normal(one, how) for one in value) if isinstance(value, list) else normalize_value(value, how)
