"""Static token vectors: a text's vector is the mean of its tokens' own, whatever their order. No PyTorch.

One core makes about ten thousand vectors of short texts a second.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.errors import WeightsNotFound

STATIC_VECTORS = "wordllama-l2-supercat-256"
"""Name in the catalogue of the vectors of the package wordllama: 32,000 tokens, 256 numbers each."""


@functools.lru_cache(maxsize=2)
def open_static_vectors(folder: Path) -> StaticVectors:
    """Return the vectors of a folder, one for all that read it."""
    return StaticVectors(folder)


class StaticVectors:
    """The vectors and the tokenizer of a folder: one file of safetensors with a single table, one JSON tokenizer."""

    def __init__(self, folder: Path) -> None:
        """Read the folder; none of its code is run. Raise WeightsNotFound if a file is missing."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        weights, names = list(folder.glob("*.safetensors")), [p for p in folder.glob("*.json") if "model" in _keys(p)]
        tables = list(load_file(weights[0]).values()) if len(weights) == 1 else []
        if len(tables) != 1 or tables[0].ndim != 2 or len(names) != 1:
            raise WeightsNotFound(f"{folder} does not hold one table of token vectors and one tokenizer")
        self.table: np.ndarray = tables[0].astype(np.float32)
        """(tokens, width), float32."""
        self.tokenizer = Tokenizer.from_file(str(names[0]))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (texts, width) in float32, in order; zeros for a text without tokens."""
        vectors = np.zeros((len(texts), self.table.shape[1]), dtype=np.float32)
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for vector, ids in zip(vectors, (one.ids for one in encoded), strict=True):
            if ids:
                mean = self.table[ids].mean(axis=0)
                vector[:] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return vectors


def _keys(path: Path) -> list[str]:
    return list(json.loads(path.read_text(encoding="utf-8")))
