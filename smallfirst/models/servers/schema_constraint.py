"""The form of an answer for engines that fail open: proven to compile before it is sent, and checked afterwards.

llama.cpp drops a grammar that it cannot apply and goes on without it, with no sign of that in its reply; vLLM has
versions that crash on one. So a schema is compiled here first, by llguidance, which both use; and the finished answer
is read again by jsonschema. Patterns and formats are held by llguidance there too, since some patterns hold up Python's
regular expressions for ever. Some milliseconds a schema, once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from smallfirst.errors import ConfigError
from smallfirst.models.generation.grammar import with_number_bounds
from smallfirst.tasks.json.schema import SEPARATORS

KEPT = 64
"""Compiled schemas kept."""
_FORM = {"whitespace_flexible": False, "item_separator": SEPARATORS[0], "key_separator": SEPARATORS[1]}
_OTHER_REGEX = ("patternProperties",)
"""Keywords that jsonschema would match by Python's regular expressions, which some patterns hold up for ever."""


class Constraint:
    """One schema in the form in which the engine takes it."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises ConfigError if no answer can be written under it; use `of`, which keeps what it has compiled."""
        from llguidance import LLMatcher

        self._schema = schema
        if found := next((word for word in _OTHER_REGEX if _holds_key(schema, word)), None):
            raise ConfigError(f'no answer can be written under this schema: "{found}" is not supported')
        self.grammar = (
            f"%llguidance {{}}\nstart: %json {json.dumps({**with_number_bounds(schema), 'x-guidance': _FORM})}"
        )
        """What llama.cpp's `grammar` takes."""
        own = LLMatcher.grammar_from_json_schema(json.dumps(with_number_bounds(schema)))
        failed, said = LLMatcher.validate_grammar_with_warnings(own, _bytes_as_tokens())
        if failed or said:  # a warning means that some keyword would not be kept
            why = " ".join(said[0].split()) if said else "it is refused"
            raise ConfigError(f"no answer can be written under this schema: {why}")

    @staticmethod
    def of(schema: Mapping[str, Any]) -> Constraint:
        """The constraint of a schema. Raises ConfigError."""
        return _compiled(json.dumps(schema))

    def is_kept_by(self, text: str) -> bool:
        """Whether a finished answer is JSON of the schema."""
        try:
            return bool(_validator(self._schema).is_valid(json.loads(text, parse_constant=_refused)))
        except (ValueError, RecursionError):
            return False


@functools.lru_cache(maxsize=KEPT)
def _compiled(schema: str) -> Constraint:
    return Constraint(json.loads(schema))


@functools.cache
def _bytes_as_tokens() -> Any:
    import llguidance

    return llguidance.LLTokenizer("byte")


def _validator(schema: Mapping[str, Any]) -> Any:
    """A validator without regular expressions of Python, and without fetching anything."""
    import jsonschema  # type: ignore[import-untyped]
    import referencing

    def by_grammar(keyword: str) -> Any:
        def check(_: Any, wanted: Any, value: Any, __: Any) -> Iterator[Any]:
            if isinstance(value, str) and not _admits(json.dumps({"type": "string", keyword: wanted}), value):
                yield jsonschema.ValidationError(f"is not of this {keyword}")

        return check

    held = {keyword: by_grammar(keyword) for keyword in ("pattern", "format")}
    kind = jsonschema.validators.extend(jsonschema.Draft202012Validator, held)
    return kind(schema, registry=referencing.Registry())


def _admits(schema: str, value: str) -> bool:
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes_as_tokens(), LLMatcher.grammar_from_json_schema(schema), log_level=0)
    octets = list(json.dumps(value, ensure_ascii=False).encode())
    if matcher.is_error() or matcher.validate_tokens(octets) < len(octets):
        return False
    return bool(matcher.consume_tokens(octets) and matcher.is_accepting())


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _holds_key(node: Any, key: str) -> bool:
    if isinstance(node, Mapping):
        return key in node or any(_holds_key(part, key) for part in node.values())
    return isinstance(node, list) and any(_holds_key(part, key) for part in node)
