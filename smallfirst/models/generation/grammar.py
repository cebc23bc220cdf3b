"""Which tokens may come next under a JSON schema, by llguidance. A forced token needs no forward pass."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smallfirst.base.errors import ConfigError, ModelError
from smallfirst.tasks.json.schema import SEPARATORS

MAX_NUMBER = 10**18
"""Numbers without bounds of their own are kept between this and its negative, and so are written without an exponent:
`165E11030` is a JSON number that no program can hold."""
_VALUES = ("const", "enum", "default", "examples")
"""Keywords whose values are not schemas."""
_TOKENIZERS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Grammar:
    """A compiled schema for one tokenizer."""

    def __init__(self, matcher: Any, words: Any, names: Sequence[str] = (), source: str = "") -> None:
        self._matcher, self.words, self.source = matcher, words, source
        self.names = tuple(names)
        """Fields at the top level, in the order in which they are written; empty where there are none."""

    @classmethod
    def compile(cls, schema: Mapping[str, Any], tokenizer: Any) -> Grammar:
        """Return the grammar of all answers that `schema` allows, in canonical form. Raise ConfigError if none can."""
        from llguidance import LLMatcher

        words, grammar = guidance_tokenizer(tokenizer), lark_grammar(schema)
        failed, warnings = LLMatcher.validate_grammar_with_warnings(grammar, words)
        if warnings:  # a warning means that some keyword would be ignored
            raise ConfigError(f"no answer can be written under this schema: {warnings[0]}", hint="simplify the schema")
        matcher = LLMatcher(words, grammar, log_level=0)
        if failed or matcher.is_error():
            raise ConfigError(f"no answer can be written under this schema: {matcher.get_error()}")
        return cls(matcher, words, tuple(schema.get("properties", ())), grammar)

    def start(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy(), self.words)

    def pieces(self, token_ids: tuple[int, ...]) -> list[bytes]:
        return [self.words.decode_bytes([token]) for token in token_ids]


def lark_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of all answers that a schema allows, in canonical form, in the language of llguidance."""
    spacing = {"whitespace_flexible": False, "item_separator": SEPARATORS[0], "key_separator": SEPARATORS[1]}
    return f"%llguidance {{}}\nstart: %json {json.dumps({**with_number_bounds(schema), 'x-guidance': spacing})}"


class GrammarState:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: Any, words: Any) -> None:
        self._matcher, self._n_vocabulary = matcher, words.vocab_size
        self.end = int(words.eos_token)
        """The token that ends an answer which could go on, such as a number that stands alone."""

    @property
    def finished(self) -> bool:
        """True if nothing may follow. Raise ModelError if the matcher has given up, which looks like an end too."""
        self._require_sound()
        return bool(self._matcher.is_stopped())

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next (vocabulary,), bool. Raise ModelError if that is too costly to compute."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._require_sound()
        allowed: np.ndarray = np.unpackbits(packed, bitorder="little")[: self._n_vocabulary].astype(bool)
        return allowed

    def take(self, token: int) -> list[int]:
        """Take `token` and return the tokens that it forces, taken too. Raise ModelError if it is not allowed."""
        self._consume(token)
        return self.forced()

    def forced(self) -> list[int]:
        tokens: list[int] = [] if self.finished else self._matcher.compute_ff_tokens()
        for token in tokens:
            self._consume(token)
        return tokens

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ModelError(f"the grammar was left at token {token}: {self._matcher.get_error()}")

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise ModelError(f"the grammar could not be followed: {self._matcher.get_error()}")


def with_number_bounds(schema: Any) -> Any:
    """Return the schema with MAX_NUMBER as the bound of every number that has none on that side."""
    if isinstance(schema, list):
        return [with_number_bounds(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: part if key in _VALUES else with_number_bounds(part) for key, part in schema.items()}
    kind = schema.get("type")
    if kind == "number" or (isinstance(kind, list) and "number" in kind):
        if not {"minimum", "exclusiveMinimum"} & schema.keys():
            found["minimum"] = -MAX_NUMBER
        if not {"maximum", "exclusiveMaximum"} & schema.keys():
            found["maximum"] = MAX_NUMBER
    return found


def guidance_tokenizer(tokenizer: Any) -> Any:
    """Return llguidance's view of a tokenizer (`decode_bytes`, `is_special_token`, `vocab_size`), made once."""
    if tokenizer not in _TOKENIZERS:
        import llguidance.hf

        _TOKENIZERS[tokenizer] = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer))
    return _TOKENIZERS[tokenizer]
