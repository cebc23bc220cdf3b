"""A writing model as the Models over it use it: an Ask in; a Completion, its pieces, vectors or a sign of life out.

Everything that computes runs in the writer's thread, between two steps of the answers under way.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import torch

from smallfirst.errors import ModelError, RequestRefused
from smallfirst.models.confidence import Calibration
from smallfirst.models.generation.grammar import Grammar, guidance_tokenizer
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler
from smallfirst.models.generation.sequence import GenerationRequest, GenerationResult, TextDelta, TopLogProbs
from smallfirst.models.local.embedding import length_batches, mean_pooled
from smallfirst.models.local.kv_cache import KVCache
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.protocol import Chunk, Completion, Embeddings, Token
from smallfirst.pricing import MachinePrice
from smallfirst.tasks.json.paths import value_spans

MIN_PREFIX_TOKENS = 16
"""Tokens of a fixed beginning from which it pays to remember it."""


class Engine:
    """One model's way to a LiveWriter, which other models over the same base may use as well."""

    def __init__(
        self,
        live: ContinuousBatchScheduler,
        *,
        name: str,
        price: MachinePrice | None = None,
        adapter: str = "",
        end: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """`end` is the token after which nothing follows; None: the writer's own.

        Without a calibration the confidence is the answer's own probability. `aclose` leaves the LiveWriter, which ends
        with its last user.
        """
        self.live, self.name, self.adapter, self._end = live, name, adapter, end
        self._price, self._calibration = price or MachinePrice(), calibration or Calibration()
        self._open = True

    @property
    def tokenizer(self) -> Any:
        """Of the model."""
        return self.live.writer.tokenizer

    async def complete(self, ask: GenerationRequest, began: float) -> Completion:
        """The whole answer; `began` is the clock at the request. Raises ModelError."""
        ask = self._fitted(ask)
        return await self._completion(ask, await self.live.write(ask), began)

    async def stream(self, ask: GenerationRequest, began: float) -> AsyncGenerator[Chunk]:
        """The answer's pieces, then the Completion. Raises ModelError."""
        ask = self._fitted(ask)
        async with aclosing(self.live.stream(ask)) as events:
            async for event in events:
                if isinstance(event, GenerationResult):
                    yield Chunk(completion=await self._completion(ask, event, began))
                else:
                    yield Chunk(text=event.text, tokens=await self._tokens(ask, event))

    async def ready(self) -> None:
        """Nothing if the model reads a token and knows what may follow. Raises ModelError."""
        await self.live.run(self._probe)

    async def embed(self, texts: Sequence[str], max_tokens: int) -> Embeddings:
        """One vector for each text, in order. Raises RequestRefused if one holds no token."""
        n_start = int(self.tokenizer.bos_token_id is not None)
        rows = [encode_prompt(self.tokenizer, text, max_tokens) for text in texts]
        empty = [i for i, row in enumerate(rows) if not row]
        if empty:
            raise RequestRefused(f"input {empty[0]} holds nothing to read")
        found: list[list[float]] = [[]] * len(rows)
        busy_s = 0.0
        for chosen in length_batches(rows):
            took_s, part = await self.live.run(partial(self._vectors, [rows[i] for i in chosen], n_start))
            busy_s += took_s
            for i, vector in zip(chosen, part, strict=True):
                found[i] = vector
        return Embeddings(found, sum(map(len, rows)), self._price.cost_usd(busy_s))

    async def aclose(self) -> None:
        """Leave the LiveWriter. Safe to call twice."""
        if self._open:
            self._open = False
            await self.live.aclose()

    def prefix_of(self, ids: Sequence[int], fixed: tuple[int, ...]) -> tuple[int, ...]:
        """The fixed beginning if these tokens begin with it, go on after it, and it is worth remembering."""
        worth = MIN_PREFIX_TOKENS <= len(fixed) < len(ids)
        return fixed if worth and tuple(ids[: len(fixed)]) == fixed else ()

    def _fitted(self, ask: GenerationRequest) -> GenerationRequest:
        """The ask with this model's adapter, and no more tokens than its context has room for."""
        context = getattr(self.live.writer.model.config, "max_position_embeddings", None)
        room = ask.max_tokens if context is None else max(1, context - len(ask.ids))
        return ask._replace(adapter=self.adapter, end=self._end, max_tokens=min(ask.max_tokens, room))

    @torch.inference_mode()
    def _probe(self) -> None:
        writer = self.live.writer
        with writer.using(self.adapter):
            state = KVCache(writer.model, 1).read([[writer.tokenizer.bos_token_id or 0]])
            likeliest = float(writer.log_probabilities(state, [None]).max())
        if not math.isfinite(likeliest):
            raise ModelError(f"{self.name} computes no numbers")

    def _vectors(self, rows: Sequence[Sequence[int]], n_start: int) -> tuple[float, list[list[float]]]:
        began = time.perf_counter()
        with self.live.writer.using(self.adapter):
            found = mean_pooled(self.live.writer.model, rows, n_start=n_start)
        return time.perf_counter() - began, found

    async def _completion(self, ask: GenerationRequest, written: GenerationResult, began: float) -> Completion:
        return Completion(
            text=written.text.strip(),
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            cost_usd=self._price.cost_usd(written.busy_s),
            prompt_tokens=written.n_prompt_tokens,
            completion_tokens=len(written.token_ids),
            confidence=self._calibration.confidence(written.log_probabilities),
            field_confidence=field_confidence(written, ask.grammar) if ask.grammar else {},
            finish_reason=written.finish_reason,
            tokens=await self._tokens(ask, written),
        )

    async def _tokens(self, ask: GenerationRequest, part: TextDelta | GenerationResult) -> tuple[Token, ...]:
        """The tokens of the text, if they are wanted."""
        if ask.top is None:
            return ()
        words = await asyncio.to_thread(guidance_tokenizer, self.tokenizer)  # takes a second the first time
        n_tokens = len(part.token_ids)
        if isinstance(part, GenerationResult) and part.n_in_text is not None:
            n_tokens = part.n_in_text
        rows = zip(part.token_ids[:n_tokens], part.log_probabilities, part.top, strict=False)
        return tuple(_token(words, *row) for row in rows)


def field_confidence(written: GenerationResult, grammar: Grammar) -> dict[str, float]:
    """By field, the probability in [0, 1] of the tokens that any of its values touches; forced tokens are certain.

    The quotes around a string are its own: they say that there is a value, and where it ends.
    """
    ends, at = [], 0
    for piece in grammar.pieces(written.token_ids):
        ends.append((at, at := at + len(piece)))
    found: dict[str, float] = {}
    text = written.text
    for path, places in value_spans(text).items():
        total = 0.0
        for start, end in places:
            quotes = int(text[start - 1 : start] == '"')
            first, last = len(text[: start - quotes].encode()), len(text[: end + quotes].encode())
            touching = (i for i, (left, right) in enumerate(ends) if left < last and right > first)
            total += math.fsum(written.log_probabilities[i] for i in touching)
        found[path] = min(1.0, math.exp(total))
    return found


def _token(words: Any, token: int, log_probability: float, top: TopLogProbs) -> Token:
    octets = _octets(words, token)
    return Token(
        text=octets.decode("utf-8", "replace"),
        logprob=log_probability,
        octets=tuple(octets),
        top=tuple(
            (_octets(words, other).decode("utf-8", "replace"), value)
            for other, value in top
            if other < words.vocab_size
        ),
    )


def _octets(words: Any, token: int) -> bytes:
    octets: bytes = words.decode_bytes([token])
    return octets
