"""Which tokens may come next under a JSON schema: llguidance, and the shortest way to end the answer in time.

A forced token needs no forward pass. An answer that runs out of tokens is closed the shortest way, so it is valid.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smallfirst.base.errors import ConfigError, ModelError
from smallfirst.tasks.json.schema import SEPARATORS

CLOSERS = (b"}", b"]", b'"', b",", b"1")
"""Texts that end a value or begin the shortest one, best first. A 1 and not a 0: `-0.000` may not be a number below 0,
however many zeros follow."""
MAX_NUMBER = 10**18
"""Numbers without bounds of their own are kept between this and its negative, and so are written without an exponent:
`165E11030` is a JSON number that no program can hold."""
_VALUES = ("const", "enum", "default", "examples")
"""Keywords whose values are not schemas."""
MAX_CLOSING_TOKENS = 4096
"""A schema whose shortest answer is longer than this is refused."""

_TOKENIZERS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Grammar:
    """A compiled schema for one tokenizer."""

    def __init__(self, matcher: Any, words: Any, names: Sequence[str] = (), source: str = "") -> None:
        self._matcher, self.words, self.source = matcher, words, source
        self.names = tuple(names)
        """Fields at the top level, in the order in which they are written; empty where there are none."""
        single = {bytes([byte]): token for token in reversed(range(words.vocab_size)) if (byte := _byte(words, token))}
        self._closers = [single[sign] for sign in CLOSERS if sign in single]
        self.closing_tokens = self._count_closing()
        """Tokens of the shortest answer."""

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
        return GrammarState(self._matcher.deep_copy(), self._closers, self.words)

    def pieces(self, token_ids: tuple[int, ...]) -> list[bytes]:
        return [self.words.decode_bytes([token]) for token in token_ids]

    def _count_closing(self) -> int:
        state = self.start()
        n_tokens = len(state.begin())
        while not state.finished:
            n_tokens += 1 + len(state.take(state.closing(state.allowed())))
            if n_tokens > MAX_CLOSING_TOKENS:
                raise ConfigError(
                    f"the shortest answer under this schema takes more than {MAX_CLOSING_TOKENS} tokens",
                    hint="ask for fewer fields, or lower minItems and minLength",
                )
        return n_tokens


def lark_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of all answers that a schema allows, in canonical form, in the language of llguidance."""
    spacing = {"whitespace_flexible": False, "item_separator": SEPARATORS[0], "key_separator": SEPARATORS[1]}
    return f"%llguidance {{}}\nstart: %json {json.dumps({**with_number_bounds(schema), 'x-guidance': spacing})}"


class GrammarState:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: Any, closers: list[int], words: Any) -> None:
        self._matcher, self._closers, self._n_vocabulary = matcher, closers, words.vocab_size
        self.end = int(words.eos_token)
        """The token that ends an answer which could go on, such as a number that stands alone."""

    @property
    def finished(self) -> bool:
        """True if nothing may follow. Raise ModelError if the matcher has given up, which looks like an end too."""
        if self._matcher.is_error():
            raise ModelError(f"the grammar could not be followed: {self._matcher.get_error()}")
        return bool(self._matcher.is_stopped())

    def begin(self) -> list[int]:
        return self._forced()

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next (vocabulary,), bool. Raise ModelError if that is too costly to compute."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ModelError(f"the grammar could not be followed: {self._matcher.get_error()}")
        allowed: np.ndarray = np.unpackbits(packed, bitorder="little")[: self._n_vocabulary].astype(bool)
        return allowed

    def take(self, token: int) -> list[int]:
        """Take `token` and return the tokens that it forces, taken too. Raise ModelError if it is not allowed."""
        self._consume(token)
        return self._forced()

    def closing(self, allowed: np.ndarray) -> int:
        """Return the allowed token that ends the answer soonest: end, a bracket, a quote, else the first."""
        if self.end < len(allowed) and allowed[self.end]:
            return self.end
        possible = [token for token in self._closers if allowed[token]]
        if set(self._closers[:2]) <= set(possible) and self._closers[2] in possible:
            return self._closers[2]
        return possible[0] if possible else int(np.argmax(allowed))

    def _forced(self) -> list[int]:
        tokens: list[int] = [] if self.finished else self._matcher.compute_ff_tokens()
        for token in tokens:
            self._consume(token)
        return tokens

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ModelError(f"the grammar was left at token {token}: {self._matcher.get_error()}")


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


def _byte(words: Any, token: int) -> int:
    text = b"" if words.is_special_token(token) else words.decode_bytes([token])
    return int(text[0]) if len(text) == 1 else 0
