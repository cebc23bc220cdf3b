"""Which tokens may come next if the answer is to follow a JSON schema: llguidance, and a way to end in time.

The grammar says which tokens are allowed and which are forced; a forced token is never asked for. An answer that runs
out of room is closed the shortest way the grammar has, so that it is valid even then; that it was cut is told by its
finish reason, and its closing tokens' low probability by its confidence. The price: compiling takes some milliseconds
a schema, and about a second for each tokenizer the first time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from smallfirst.errors import ConfigError, ModelError
from smallfirst.tasks.json.schema import SEPARATORS

CLOSERS = (b"}", b"]", b'"', b",", b"1")
"""What ends a value or begins the shortest one, best first. A 1 and no 0: `-0.000` may not be a number below 0, however
many noughts follow."""
MAX_NUMBER = 10**18
"""Numbers without bounds of their own are kept between this and its negative, and so are written without an exponent:
`165E11030` is a JSON number that no program can hold."""
_NO_SCHEMAS = ("const", "enum", "default", "examples")
MAX_GRAMMARS = 64
"""Grammars of requests' own schemas that are kept for each model."""
COMPILE_TIMEOUT_S = 10.0
"""Seconds after which a schema counts as too much, those compiled before it included."""
MAX_CLOSING_TOKENS = 4096
"""A schema whose shortest answer is longer than this is refused."""

_TOKENIZERS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Grammar:
    """A compiled schema for one tokenizer, followed anew for each answer."""

    def __init__(self, matcher: Any, words: Any) -> None:
        """From a matcher in its first state and llguidance's view of the tokenizer; use `compile`."""
        self._matcher, self.words = matcher, words
        single = {bytes([byte]): token for token in reversed(range(words.vocab_size)) if (byte := _byte(words, token))}
        self._closers = [single[sign] for sign in CLOSERS if sign in single]
        self.closing_tokens = self._count_closing()

    @classmethod
    def compile(cls, schema: Mapping[str, Any], tokenizer: Any) -> Grammar:
        """The grammar of all answers that `schema` allows, in canonical form. Raises ConfigError if it has none."""
        from llguidance import LLMatcher

        spaced = dict(zip(("item_separator", "key_separator"), SEPARATORS, strict=True))
        options: Any = {**spaced, "whitespace_flexible": False}
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(with_number_bounds(schema)), overrides=options)
        words = guidance_tokenizer(tokenizer)
        failed, said = LLMatcher.validate_grammar_with_warnings(grammar, words)
        if said:  # a warning means that some keyword would not be kept
            raise ConfigError(f"no answer can be written under this schema: {said[0]}", hint="write it more simply")
        matcher = LLMatcher(words, grammar, log_level=0)
        if failed or matcher.is_error():
            raise ConfigError(f"no answer can be written under this schema: {matcher.get_error()}")
        return cls(matcher, words)

    def follow(self) -> GrammarState:
        """The beginning of an answer."""
        return GrammarState(self._matcher.deep_copy(), self._closers, self.words)

    def pieces(self, token_ids: tuple[int, ...]) -> list[bytes]:
        """The UTF-8 bytes that each token adds to the text."""
        return [self.words.decode_bytes([token]) for token in token_ids]

    def _count_closing(self) -> int:
        """Tokens of the shortest way through, as `Follower.closing` takes it."""
        follower, n_tokens = self.follow(), 0
        n_tokens += len(follower.begin())
        while not follower.finished:
            n_tokens += 1 + len(follower.take(follower.closing(follower.allowed())))
            if n_tokens > MAX_CLOSING_TOKENS:
                raise ConfigError(
                    f"the shortest answer under this schema takes more than {MAX_CLOSING_TOKENS} tokens",
                    hint="ask for fewer fields, or lower minItems and minLength",
                )
        return n_tokens


class GrammarCache:
    """Grammars of one tokenizer, compiled when first asked for; those used last are kept.

    They are compiled one after the other in a thread of its own: whoever sends many schemas waits for himself, and no
    answer under way does.
    """

    def __init__(self, tokenizer: Any, *, most: int = MAX_GRAMMARS) -> None:
        """`most` grammars are kept."""
        self._tokenizer, self._most = tokenizer, most
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    def __len__(self) -> int:
        """Grammars kept now."""
        return len(self._kept)

    async def grammar(self, schema: Mapping[str, Any]) -> Grammar:
        """The grammar of a schema. Raises ConfigError if it has none, or none soon enough."""
        # Not the canonical form: the order of properties is the order in which they are written.
        key = hashlib.sha256(json.dumps(schema).encode()).hexdigest()
        if key not in self._kept:
            loop = asyncio.get_running_loop()
            compiling = loop.run_in_executor(self._thread, Grammar.compile, schema, self._tokenizer)
            try:
                self._keep(key, await asyncio.wait_for(compiling, COMPILE_TIMEOUT_S))
            except TimeoutError:
                rule = (
                    f"no answer can be written under this schema: it takes more than {COMPILE_TIMEOUT_S:g} s to compile"
                )
                raise ConfigError(rule, hint="write it more simply") from None
        self._kept.move_to_end(key)
        return self._kept[key]

    def close(self) -> None:
        """Nothing back; nothing more is compiled."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _keep(self, key: str, grammar: Grammar) -> None:
        self._kept[key] = grammar
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)


def with_number_bounds(schema: Any) -> Any:
    """The schema with MOST_NUMBER as the bound of every number that has none on that side."""
    if isinstance(schema, list):
        return [with_number_bounds(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: part if key in _NO_SCHEMAS else with_number_bounds(part) for key, part in schema.items()}
    kind = schema.get("type")
    if kind == "number" or (isinstance(kind, list) and "number" in kind):
        if not {"minimum", "exclusiveMinimum"} & schema.keys():
            found["minimum"] = -MAX_NUMBER
        if not {"maximum", "exclusiveMaximum"} & schema.keys():
            found["maximum"] = MAX_NUMBER
    return found


class GrammarState:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: Any, closers: list[int], words: Any) -> None:
        """From a matcher of its own, the tokens that close best, best first, and llguidance's view of the tokenizer."""
        self._matcher, self._closers, self._n_vocabulary = matcher, closers, words.vocab_size
        self.end = int(words.eos_token)
        """The token that ends an answer which could go on: a number that stands alone."""

    @property
    def finished(self) -> bool:
        """True if nothing may follow. Raises ModelError if the matcher has given up, which it shows as an end too."""
        if self._matcher.is_error():
            raise ModelError(f"the grammar could not be followed: {self._matcher.get_error()}")
        return bool(self._matcher.is_stopped())

    def begin(self) -> list[int]:
        """Tokens that every answer begins with, taken."""
        return self._forced()

    def allowed(self) -> np.ndarray:
        """Which tokens may come next (vocabulary,), bool. Raises ModelError if that is too much to find out."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ModelError(f"the grammar could not be followed: {self._matcher.get_error()}")
        allowed: np.ndarray = np.unpackbits(packed, bitorder="little")[: self._n_vocabulary].astype(bool)
        return allowed

    def take(self, token: int) -> list[int]:
        """The tokens forced after `token`; all are taken. Raises ModelError if it is not allowed."""
        if not self._matcher.consume_token(token):
            raise ModelError(f"the grammar was left at token {token}: {self._matcher.get_error()}")
        return self._forced()

    def closing(self, allowed: np.ndarray) -> int:
        """The allowed token that ends the answer soonest: the end token, a bracket, a quote, else the first one.

        Both brackets are allowed inside a string only, and there they end nothing.
        """
        if self.end < len(allowed) and allowed[self.end]:
            return self.end
        possible = [token for token in self._closers if allowed[token]]
        if set(self._closers[:2]) <= set(possible) and self._closers[2] in possible:
            return self._closers[2]
        return possible[0] if possible else int(np.argmax(allowed))

    def _forced(self) -> list[int]:
        tokens: list[int] = [] if self.finished else self._matcher.compute_ff_tokens()
        for token in tokens:
            if not self._matcher.consume_token(token):
                raise ModelError(f"the grammar was left at token {token}: {self._matcher.get_error()}")
        return tokens


def guidance_tokenizer(tokenizer: Any) -> Any:
    """Llguidance's view of a tokenizer: `decode_bytes`, `is_special_token`, `vocab_size`. Made once for each."""
    if tokenizer not in _TOKENIZERS:
        import llguidance.hf

        _TOKENIZERS[tokenizer] = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer))
    return _TOKENIZERS[tokenizer]


def _byte(words: Any, token: int) -> int:
    """The only byte of a token's text; 0 if it has another number of them or is special."""
    text = b"" if words.is_special_token(token) else words.decode_bytes([token])
    return int(text[0]) if len(text) == 1 else 0
