"""A sentence encoder: one unit vector a text, by mean pooling over its tokens."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.models.compute_thread import run_in_compute_thread
from smallfirst.models.label_model import TextEmbedding
from smallfirst.models.local.weights import import_transformers, load_pretrained, weights_fingerprint
from smallfirst.sync import run_in_thread

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LARGER_ENCODER = "sentence-transformers/all-mpnet-base-v2"
"""Five times the weights of the default, and about as many times as slow."""


REMEMBERED = 64
"""Texts whose vectors are kept: the domain check and the model that answers read the same one, one after the other."""


@functools.lru_cache(maxsize=4)
def open_encoder(folder: Path) -> SentenceEncoder:
    """Return the encoder of a folder, one for all that read it; it is never trained, so it remembers vectors."""
    return SentenceEncoder(folder, remembered=REMEMBERED)


class SentenceEncoder:
    """A sentence encoder on this machine."""

    max_tokens = 256
    """Longer texts are cut; the folder's `sentence_bert_config.json` says otherwise if there is one."""
    batch_rows = 32

    def __init__(self, folder: Path, *, remembered: int = 0) -> None:
        """Load the weights. Vectors of the latest `remembered` texts are kept; 0 where the weights change."""
        transformers = import_transformers("The sentence encoder")
        import torch

        self.tokenizer = load_pretrained(transformers.AutoTokenizer, folder)
        if (published := folder / "sentence_bert_config.json").is_file():
            self.max_tokens = json.loads(published.read_text(encoding="utf-8")).get("max_seq_length") or self.max_tokens

        def load() -> Any:
            return load_pretrained(transformers.AutoModel, folder, dtype=torch.float32, use_safetensors=True)

        self.model = run_in_thread(load).eval()
        self._n_remembered = remembered
        self._latest: dict[str, np.ndarray] = {}
        """Of the compute thread alone."""

    @cached_property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (texts, width) in float32, in order."""
        return run_in_compute_thread(
            lambda: self._remembered(texts) if len(texts) <= self._n_remembered else self._embed(texts)
        )

    def text_embeddings(self, texts: Sequence[str]) -> list[TextEmbedding]:
        began = time.perf_counter()
        vectors = self.embed(texts).tolist()
        busy_s = (time.perf_counter() - began) / max(1, len(texts))
        return [
            TextEmbedding(vector, len(self.tokens(text)), busy_s) for vector, text in zip(vectors, texts, strict=True)
        ]

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, truncation=True, max_length=self.max_tokens)
        return ids

    def vectors(self, encoded: Sequence[Sequence[int]]) -> Any:
        """Return unit vectors (texts, width), float32: the mean over each text's tokens, scaled to length 1."""
        import torch

        hidden, mask = self.hidden_states(encoded)
        weight = mask.unsqueeze(-1).float()  # (batch, time, 1)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    def hidden_states(self, encoded: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Return the last hidden states (texts, tokens, width), float32, and the mask (texts, tokens), 1 for a token.

        Texts are padded on the right to the longest one.
        """
        import torch

        from smallfirst.models.encoder.packed_states import FAMILIES, packed_states
        from smallfirst.models.local.token_batches import pack_rows, pad_right

        mask = pad_right([[1] * len(row) for row in encoded])
        if torch.is_grad_enabled() and self.model.config.model_type in FAMILIES:
            packed = pack_rows(encoded)
            return packed.pad(packed_states(self.model, packed)).float(), mask
        return self.model(input_ids=pad_right(encoded), attention_mask=mask).last_hidden_state.float(), mask

    def _remembered(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._latest]
        found = self._latest | dict(zip(new, self._embed(new), strict=True))
        self._latest = dict(list(found.items())[-self._n_remembered :])
        return np.stack([found[text] for text in texts]) if texts else self._embed(texts)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        from smallfirst.models.local.token_batches import length_batches

        encoded = [self.tokens(text) for text in texts]
        vectors = np.zeros((len(encoded), self.model.config.hidden_size), dtype=np.float32)
        for chosen in length_batches([len(ids) for ids in encoded], max_rows=self.batch_rows):
            with torch.inference_mode():
                vectors[chosen] = self.vectors([encoded[i] for i in chosen]).numpy()
        return vectors
