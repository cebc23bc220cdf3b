"""Token-by-token generation by a causal model, many answers in one batch that do not depend on each other.

Prompts are padded on the right and read together. Logits are computed in bf16, then again in fp32 for the best few.
They must be the last hidden state times the output matrix, as in Llama, Qwen and SmolLM.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallfirst.models.batching import length_batches
from smallfirst.models.generation.adapters import load_merged
from smallfirst.models.generation.sequence import GeneratedSequence, GenerationRequest, GenerationResult
from smallfirst.models.local.kv_cache import KVCache
from smallfirst.models.local.tokenizer import end_of_turn_token

STEP_TOKENS = 64
"""Forced tokens are fed together, up to about this many a step over all rows; more would delay the other rows."""
REFINED_TOKENS = 64
"""Best tokens whose logits are computed again in fp32."""
DROP_BELOW = 0.75
"""Share of unfinished rows below which the finished ones are dropped from the batch."""
MAX_PREFIXES = 8
"""Prompt prefixes whose keys and values are cached; the least recently used is dropped first."""


class Generator:
    """Weights and tokenizer of a causal model that generates text. Not thread-safe."""

    batch_rows = 64
    batch_tokens = 16_384

    def __init__(self, model: Any, tokenizer: Any, *, end: int | None = None) -> None:
        """Generate until `end`, by default the tokenizer's."""
        self.model, self.tokenizer = model, tokenizer
        self.end = tokenizer.eos_token_id if end is None else end
        self._prefixes: OrderedDict[tuple[int, ...], KVCache] = OrderedDict()

    @classmethod
    def load(cls, folder: Path, *, chat: bool = False) -> Generator:
        """Return the generator of a folder of weights; an adapter is merged into its base."""
        model, tokenizer = load_merged(folder)
        return cls(model, tokenizer, end=end_of_turn_token(tokenizer) if chat else None)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Return one answer each, in order. Cached prefixes are not used."""
        results: dict[int, GenerationResult] = {}
        lengths = [len(request.ids) for request in requests]
        for chosen in length_batches(lengths, max_rows=self.batch_rows, max_tokens=self.batch_tokens):
            sequences = [GeneratedSequence(requests[i], self.tokenizer) for i in chosen]
            batch = Batch(self, sequences)
            width = max(len(sequence.request.ids) + len(sequence.ids) for sequence in sequences)
            while batch.n_active:
                batch.step(width)
                batch.drop_finished(DROP_BELOW)
                width = batch.forced_width
            results |= {i: sequence.result() for i, sequence in zip(chosen, sequences, strict=True)}
        return [results[i] for i in range(len(requests))]

    @torch.inference_mode()
    def prefix(self, ids: tuple[int, ...]) -> KVCache:
        """Return keys and values of one row after `ids`, at least one; cached."""
        if ids not in self._prefixes:
            cache = KVCache(self.model, 1)
            cache.read([ids])
            self._prefixes[ids] = cache
            if len(self._prefixes) > MAX_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(ids)
        return self._prefixes[ids]

    @torch.inference_mode()
    def log_probabilities(self, states: torch.Tensor, allowed: Sequence[np.ndarray | None]) -> torch.Tensor:
        """Return log-probabilities (rows, vocabulary) among the allowed tokens, fp32, on the CPU."""
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


class Batch:
    """Answers that are generated together, with the keys and values of what they have read."""

    def __init__(
        self, generator: Generator, sequences: Sequence[GeneratedSequence], *, prefix: KVCache | None = None
    ) -> None:
        """Start a batch; `prefix` is what one row has read of the beginning that all the prompts share."""
        self._generator, self.sequences = generator, list(sequences)
        if prefix is None:
            self.cache = KVCache(generator.model, len(self.sequences))
            return
        self.cache = prefix.repeat(len(self.sequences))
        for sequence in self.sequences:
            sequence.n_fed = prefix.columns

    @property
    def n_active(self) -> int:
        return sum(not sequence.finished for sequence in self.sequences)

    @property
    def reading(self) -> bool:
        return any(sequence.reading for sequence in self.sequences)

    @property
    def forced_width(self) -> int:
        """Most tokens for each row in a step that must not delay the others."""
        return max(1, STEP_TOKENS // max(1, self.n_active))

    @torch.inference_mode()
    def step(self, width: int) -> None:
        """Feed each row up to `width` tokens, and choose the next token of every row that has read all of its own."""
        began = time.perf_counter()
        active = [sequence for sequence in self.sequences if not sequence.finished]
        states = self.cache.read([sequence.feed(width) for sequence in self.sequences])
        ready = [i for i, sequence in enumerate(self.sequences) if sequence.ready]
        if ready:
            self._choose([self.sequences[i] for i in ready], states[ready])
        share_s = (time.perf_counter() - began) / max(1, len(active))
        for sequence in active:
            sequence.busy_s += share_s

    @torch.inference_mode()
    def drop_finished(self, below: float = 1.0) -> None:
        active = [i for i, sequence in enumerate(self.sequences) if not sequence.finished]
        if active and len(active) < below * len(self.sequences):
            self.sequences = [self.sequences[i] for i in active]
            self.cache.select_rows(active)
            self.cache.compact()

    @torch.inference_mode()
    def join(self, others: Batch) -> None:
        self.cache.compact()
        self.cache.join(others.cache)
        self.sequences += others.sequences

    def _choose(self, sequences: list[GeneratedSequence], states: torch.Tensor) -> None:
        allowed = [sequence.allowed() for sequence in sequences]
        log_probabilities = self._generator.log_probabilities(states, allowed)
        likeliest = log_probabilities.argmax(dim=-1).tolist()
        for i, sequence in enumerate(sequences):
            if sequence.error:
                continue
            token = sequence.choose(log_probabilities[i], likeliest[i], allowed[i])
            sequence.append(token, log_probabilities[i], self._generator.end)
