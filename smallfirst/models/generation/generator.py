"""Answers written token by token by a causal model on this machine, many at once.

Prompts of like length are read together, padded on the right; then every step feeds each row the tokens it has taken
(one, or a run of tokens that a grammar forces) and gives the next token's probabilities. Finished rows are dropped.
A row's place in the batch never changes what it says: padding is masked, positions are its own.

Output logits are computed in bf16, then again in fp32 for the best few: in bf16 alone, neighbours are often equal.
For models whose logits are the last hidden state times the output matrix (Llama, Qwen, SmolLM).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from smallfirst.errors import ModelError
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.sequence import GeneratedSequence, GenerationRequest, GenerationResult
from smallfirst.models.local.kv_cache import KVCache

__all__ = ["GenerationRequest", "Batch", "Generator", "GenerationResult"]

STEP_TOKENS = 64
"""Forced tokens are fed together up to about so many a step over all rows; more would make the others wait."""
REFINED_TOKENS = 64
"""Best tokens whose logits are computed again in fp32."""
DROP_BELOW = 0.75
"""Share of unfinished rows under which the finished ones are dropped from the batch."""
MAX_PREFIXES = 8
"""Beginnings of prompts whose keys and values are remembered; the one not used for longest goes first."""


class Generator:
    """Weights and tokenizer of a causal model that writes. Not thread-safe."""

    batch_rows = 64
    batch_tokens = 16_384

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        end: int | None = None,
        using: Callable[[str], AbstractContextManager[None]] | None = None,
    ) -> None:
        """`end` is the token after which nothing follows; None: the tokenizer's end token.

        `using(adapter)` holds while the model computes with that adapter; None: there are none.
        """
        self.model, self.tokenizer = model, tokenizer
        self.end = tokenizer.eos_token_id if end is None else end
        self._using = using
        self._prefixes: OrderedDict[tuple[str, tuple[int, ...]], KVCache] = OrderedDict()

    def using(self, adapter: str) -> AbstractContextManager[None]:
        """Holds while the model computes with this adapter. Raises ModelError if it has none of that name."""
        if self._using is not None:
            return self._using(adapter)
        if adapter:
            raise ModelError(f"this model has no adapter {adapter!r}")
        return nullcontext()

    def write(self, asks: Sequence[GenerationRequest], grammar: Grammar | None = None) -> list[GenerationResult]:
        """One answer each, in order; under `grammar`, if given, all of them are valid JSON of its schema.

        All asks are of one adapter; remembered beginnings are not used.
        """
        results: dict[int, GenerationResult] = {}
        for chosen in self._batches(asks):
            lines = [GeneratedSequence(_under(asks[i], grammar), self.tokenizer) for i in chosen]
            with self.using(asks[chosen[0]].adapter):
                self._write(Batch(self, lines))
            results |= {i: line.written() for i, line in zip(chosen, lines, strict=True)}
        return [results[i] for i in range(len(asks))]

    @torch.inference_mode()
    def prefix(self, ids: tuple[int, ...], adapter: str) -> KVCache:
        """What one row has read after `ids`, at least one; remembered for each adapter on its own."""
        key = (adapter, ids)
        if key not in self._prefixes:
            begun = KVCache(self.model, 1)
            begun.read([ids])
            self._prefixes[key] = begun
            if len(self._prefixes) > MAX_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    @torch.inference_mode()
    def log_probabilities(self, states: torch.Tensor, allowed: Sequence[np.ndarray | None]) -> torch.Tensor:
        """Log-probabilities (lines, vocabulary) among the allowed tokens, fp32, on the CPU. states (lines, hidden)."""
        head = self.model.get_output_embeddings().weight
        logits = (states @ head.T).float()
        for i, mask in enumerate(allowed):
            if mask is not None:
                logits[i, : len(mask)].masked_fill_(torch.from_numpy(~mask).to(logits.device), -torch.inf)
                logits[i, len(mask) :] = -torch.inf
        best = logits.topk(min(REFINED_TOKENS, logits.shape[1]), dim=-1)
        exact = torch.einsum("rh,rbh->rb", states.float(), head[best.indices].float())
        logits.scatter_(1, best.indices, exact.masked_fill(best.values.isinf(), -torch.inf))
        normalised: torch.Tensor = logits.log_softmax(dim=-1).cpu()
        return normalised

    def _batches(self, asks: Sequence[GenerationRequest]) -> Iterator[list[int]]:
        """Numbers of the asks of each batch, alike in length."""
        batch: list[int] = []
        for i in sorted(range(len(asks)), key=lambda i: len(asks[i].ids)):
            full = len(batch) == self.batch_rows or (len(batch) + 1) * len(asks[i].ids) > self.batch_tokens
            if batch and full:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _write(self, batch: Batch) -> None:
        width = max(len(line.ask.ids) + len(line.ids) for line in batch.lines)  # the prompts are read whole
        while batch.alive:
            batch.step(width)
            batch.drop(DROP_BELOW)
            width = batch.forced_width


class Batch:
    """Answers that are written together, and the keys and values of what they have read."""

    def __init__(self, writer: Generator, lines: Sequence[GeneratedSequence], *, begun: KVCache | None = None) -> None:
        """With `begun`, what one row has read of the beginning that all the prompts share."""
        self._writer, self.lines = writer, list(lines)
        if begun is None:
            self.memory = KVCache(writer.model, len(self.lines))
            return
        self.memory = begun.copies(len(self.lines))
        for line in self.lines:
            line.fed = begun.columns

    @property
    def alive(self) -> int:
        """Rows that are not finished."""
        return sum(not line.finished for line in self.lines)

    @property
    def reading(self) -> bool:
        """True while some prompt is not read whole."""
        return any(line.reading for line in self.lines)

    @property
    def forced_width(self) -> int:
        """Most tokens for each row in a step that must not keep the others waiting."""
        return max(1, STEP_TOKENS // max(1, self.alive))

    @torch.inference_mode()
    def step(self, width: int) -> None:
        """Nothing back; each row is fed up to `width` tokens, and takes its next one if it has no more to read."""
        began = time.perf_counter()
        at_work = [line for line in self.lines if not line.finished]
        states = self.memory.read([line.feed(width) for line in self.lines])
        ready = [i for i, line in enumerate(self.lines) if line.waits]
        if ready:
            self._choose([self.lines[i] for i in ready], states[ready])
        share_s = (time.perf_counter() - began) / max(1, len(at_work))
        for line in at_work:
            line.busy_s += share_s

    @torch.inference_mode()
    def drop(self, below: float = 1.0) -> None:
        """Nothing back; the finished rows are gone if less than this share is not finished."""
        alive = [i for i, line in enumerate(self.lines) if not line.finished]
        if alive and len(alive) < below * len(self.lines):
            self.lines = [self.lines[i] for i in alive]
            self.memory.keep(alive)
            self.memory.pack()

    @torch.inference_mode()
    def join(self, others: Batch) -> None:
        """Nothing back; the rows of another batch that has begun to read go on in this one."""
        self.memory.pack()
        self.memory.join(others.memory)
        self.lines += others.lines

    def _choose(self, lines: list[GeneratedSequence], states: torch.Tensor) -> None:
        """Nothing back; each line takes its next token. states (lines, hidden)."""
        allowed = [line.allowed() for line in lines]
        log_probabilities = self._writer.log_probabilities(states, allowed)
        likeliest = log_probabilities.argmax(dim=-1).tolist()
        for i, line in enumerate(lines):
            if line.failed:
                continue
            token = line.pick(log_probabilities[i], likeliest[i], allowed[i])
            end = self._writer.end if line.ask.end is None else line.ask.end
            line.take(token, log_probabilities[i], end)


def _under(ask: GenerationRequest, grammar: Grammar | None) -> GenerationRequest:
    return ask if grammar is None else ask._replace(grammar=grammar)
