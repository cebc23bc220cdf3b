"""A sentence encoder: a text to one unit vector, by mean pooling over its tokens.

Used by the linear rungs of the ladder, frozen or fine-tuned, and to find the training rows nearest to a request. It is
cheap: 22 M parameters read a short text in a few milliseconds on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.models.compute_thread import run_in_compute_thread, run_in_temp_thread
from smallfirst.models.local.weights import import_transformers, refuse_remote_code, weights_fingerprint

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


class SentenceEncoder:
    """A sentence encoder on this machine."""

    max_tokens = 256
    batch_rows = 32

    def __init__(self, folder: Path) -> None:
        transformers = import_transformers("The sentence encoder")
        import torch

        refuse_remote_code(folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )

        def loaded() -> Any:
            return transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )

        self.model = run_in_temp_thread(loaded).eval()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any weight."""
        return weights_fingerprint(self.model)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (texts, width) in float32, in order."""
        return run_in_compute_thread(lambda: self._embedded(texts))

    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        encoded = [self.tokens(text) for text in texts]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        vectors = np.zeros((len(encoded), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), self.batch_rows):
            chosen = order[start : start + self.batch_rows]
            with torch.inference_mode():
                vectors[chosen] = self.vectors([encoded[i] for i in chosen]).numpy()
        return vectors

    def tokens(self, text: str) -> list[int]:
        """The text in tokens, its end cut off beyond `max_tokens`."""
        ids: list[int] = self.tokenizer.encode(text, truncation=True, max_length=self.max_tokens)
        return ids

    def vectors(self, encoded: Sequence[Sequence[int]]) -> Any:
        """Unit vectors (texts, width), a float32 tensor: the mean over each text's tokens, scaled to length 1."""
        import torch

        width = max(map(len, encoded))
        ids = torch.zeros(len(encoded), width, dtype=torch.long)
        mask = torch.zeros(len(encoded), width, dtype=torch.long)
        for at, row in enumerate(encoded):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weight = mask.unsqueeze(-1).float()  # (batch, time, 1)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)
