"""Label probabilities from one position of a causal model: one forward pass per text, whatever the number of labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smallfirst.models.batching import length_batches, run_in_compute_thread
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.local.adapters import load_merged
from smallfirst.models.local.packed_decoder import PackedDecoder, unsupported_reason
from smallfirst.models.local.packed_rows import pad_right
from smallfirst.models.local.tokenizer import common_prefix, encode_prompt
from smallfirst.models.manifest import Manifest

PACKED_BATCH_TOKENS = 256
"""Tokens that the packed decoder reads together: without padding, more of them only overflow the processor's cache."""


class LabelScorer:
    """Weights and tokenizer of a causal model, and the label probabilities they give. Not thread-safe."""

    batch_rows = 32
    batch_tokens = 1024
    """Most tokens in a batch of more than one row; it bounds how long one long text delays another."""

    def __init__(self, model: Any, tokenizer: Any, manifest: Manifest) -> None:
        """Score with transformers' own forward, so that the weights may be trained."""
        self.model, self.tokenizer, self.manifest = model, tokenizer, manifest
        self.label_tokens = torch.tensor(manifest.label_tokens)
        self.packed: PackedDecoder | None = None
        """Reads prompts in place of transformers, with equal answers, where it knows the model's family."""
        self._serving = False

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, *, packed: bool = True) -> LabelScorer:
        """Return the scorer of a folder that training wrote, by the packed decoder if possible."""
        scorer = cls(*load_merged(folder), manifest)
        if packed and not unsupported_reason(scorer.model):
            scorer.packed, scorer.batch_tokens = PackedDecoder(scorer.model), PACKED_BATCH_TOKENS
            scorer.packed.share_prefix(scorer.prefix)
        scorer._serving = True
        return scorer

    @property
    def prefix(self) -> list[int]:
        """Tokens with which every prompt of the task begins: the start token and the operator's own words."""
        one, other = self.encode(["a", "Z 9"])  # two texts that have nothing in common
        return common_prefix(one, other)[: min(len(one), len(other)) - 1]

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        return run_in_compute_thread(lambda: self._score(texts)) if self._serving else self._score(texts)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        task, limit = self.manifest.task, self.manifest.max_tokens
        return [encode_prompt(self.tokenizer, task.prompt(text), limit) for text in texts]

    def _score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        encoded = self.encode(texts)
        results: dict[int, LabelLogProbs] = {}
        lengths = [len(ids) for ids in encoded]
        for chosen in length_batches(lengths, max_rows=self.batch_rows, max_tokens=self.batch_tokens):
            began = time.perf_counter()
            rows = self._forward([encoded[i] for i in chosen])
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: LabelLogProbs(row, lengths[i], busy_s) for i, row in zip(chosen, rows, strict=True)}
        return [results[i] for i in range(len(encoded))]

    @torch.inference_mode()
    def _forward(self, batch: list[list[int]]) -> list[list[float]]:
        """Return the log-probabilities of the labels (batch, labels)."""
        if self.packed:
            last = self.packed.last_states(batch)
        else:
            states = self.model.model(input_ids=pad_right(batch).to(self.model.device), use_cache=False)
            last = states.last_hidden_state[torch.arange(len(batch)), [len(ids) - 1 for ids in batch]].float()
        head = self.model.get_output_embeddings().weight[self.label_tokens.to(last.device)].float()
        rows: list[list[float]] = torch.log_softmax(last @ head.T, dim=-1).tolist()
        return rows
