"""Label probabilities from one position of a causal model: one forward pass per text, whatever the number of labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from smallfirst.models.batching import length_batches, run_in_compute_thread
from smallfirst.models.generation.adapters import load_merged
from smallfirst.models.label_model import LabelLogProbs, TextEmbedding
from smallfirst.models.local.int8_matmul import Int8Linear, int8_supported
from smallfirst.models.local.packed_decoder import PackedDecoder, unsupported_reason
from smallfirst.models.local.smoothquant import MAX_PROMPTS, measure_input_ranges
from smallfirst.models.local.token_batches import pad_right
from smallfirst.models.local.tokenizer import common_prefix, encode_prompt
from smallfirst.models.manifest import Manifest, int8_allowed

R = TypeVar("R", LabelLogProbs, TextEmbedding)
Engine = Literal["transformers", "packed", "int8"]
"""transformers' own forward, or the packed decoder in the model's precision or in int8."""

PACKED_BATCH_TOKENS = 256
"""Tokens that the packed engine reads together. Without padding, more of them only overflow the cache: 8 or 16 rows of
15 tokens were a tenth faster than 32 in int8, and a third faster than 48 (one core of an AMD EPYC, 1 MB of L2)."""


class LabelScorer:
    """Weights and tokenizer of a causal model, and the label probabilities they give. Not thread-safe."""

    batch_rows = 32
    batch_tokens = 1024
    """Most tokens in a batch of more than one row; it bounds how long one long text delays another."""

    def __init__(self, model: Any, tokenizer: Any, manifest: Manifest) -> None:
        """Score with transformers' own forward, so that the weights may be trained."""
        self.model, self.tokenizer, self.manifest = model, tokenizer, manifest
        self.label_tokens = torch.tensor(manifest.label_tokens)
        self.engine: Engine = "transformers"
        self._packed: PackedDecoder | None = None
        self._serving = False
        self._edges = self._common_edges()

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, *, engine: Engine | None = None) -> LabelScorer:
        """Return the scorer of a folder, on the fastest engine with equal answers, or on `engine` if possible."""
        scorer = cls(*load_merged(folder), manifest)
        scorer._pack(engine or ("int8" if int8_allowed(folder, manifest) else "packed"))
        scorer._serving = True
        return scorer

    @property
    def prefix(self) -> list[int]:
        """Tokens with which every prompt of the task begins: the start token and the operator's own words."""
        return self._edges[0]

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        return self._run(texts, self._forward, LabelLogProbs)

    def embed(self, texts: Sequence[str]) -> list[TextEmbedding]:
        """Return the mean last state of each text's own tokens, without the prompt's, scaled to length 1."""
        return self._run(texts, self._embed, TextEmbedding)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        task, limit = self.manifest.task, self.manifest.max_tokens
        return [encode_prompt(self.tokenizer, task.prompt(text), limit) for text in texts]

    def _run(
        self,
        texts: Sequence[str],
        compute: Callable[[list[list[int]]], list[list[float]]],
        result: Callable[[list[float], int, float], R],
    ) -> list[R]:
        def run() -> list[R]:
            encoded = self.encode(texts)
            results: dict[int, R] = {}
            lengths = [len(ids) for ids in encoded]
            for chosen in length_batches(lengths, max_rows=self.batch_rows, max_tokens=self.batch_tokens):
                began = time.perf_counter()
                rows = compute([encoded[i] for i in chosen])
                busy_s = (time.perf_counter() - began) / len(chosen)
                results |= {i: result(row, lengths[i], busy_s) for i, row in zip(chosen, rows, strict=True)}
            return [results[i] for i in range(len(encoded))]

        return run_in_compute_thread(run) if self._serving else run()

    def _pack(self, engine: Engine) -> None:
        if engine == "transformers" or unsupported_reason(self.model):
            return
        if engine == "int8" and int8_supported():
            ranges = measure_input_ranges(self.model, self.encode(self.manifest.task.closed[:MAX_PROMPTS]))
            self._packed = PackedDecoder(self.model, Int8Linear, ranges=ranges)
        else:
            engine, self._packed = "packed", PackedDecoder(self.model)
        self.engine, self.batch_tokens = engine, PACKED_BATCH_TOKENS
        self._packed.share_prefix(self.prefix)

    def _forward(self, batch: list[list[int]]) -> list[list[float]]:
        with torch.inference_mode():
            last = self._last_states(batch)
            head = self.model.get_output_embeddings().weight[self.label_tokens.to(last.device)].float()
            return torch.log_softmax(last @ head.T, dim=-1).tolist()  # (batch, labels)

    def _last_states(self, batch: list[list[int]]) -> torch.Tensor:
        if self._packed:
            return self._packed.last_states(batch)
        ends = torch.tensor([len(ids) for ids in batch]) - 1
        return self._padded_states(batch)[torch.arange(len(batch)), ends].float()

    def _padded_states(self, batch: list[list[int]]) -> torch.Tensor:
        ids = pad_right(batch).to(self.model.device)
        states: torch.Tensor = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def _embed(self, batch: list[list[int]]) -> list[list[float]]:
        if self._packed:
            states = self._packed.all_states(batch)
        else:
            with torch.inference_mode():
                padded = self._padded_states(batch)
                states = [rows[: len(ids)].float() for rows, ids in zip(padded, batch, strict=True)]
        return [self._mean(len(ids), rows) for ids, rows in zip(batch, states, strict=True)]

    def _mean(self, n_tokens: int, states: torch.Tensor) -> list[float]:
        before, after = map(len, self._edges)
        own = states[before : n_tokens - after] if n_tokens > before + after else states  # an empty text has none
        vector: list[float] = torch.nn.functional.normalize(own.double().mean(dim=0), dim=0).tolist()
        return vector

    def _common_edges(self) -> tuple[list[int], list[int]]:
        """Return what the prompts of two texts that have nothing in common begin and end with."""
        one, other = self.encode(["a", "Z 9"])
        begin, end = common_prefix(one, other), common_prefix(one[::-1], other[::-1])[::-1]
        room = min(len(one), len(other)) - 1
        return begin[:room], end[len(end) - max(0, min(len(end), room - len(begin))) :]
