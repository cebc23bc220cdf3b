"""An encoder that embeds every text once: folds and parts of the rows share their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class CachedEncoder:
    """A sentence encoder or a table of word vectors that remembers what it embedded."""

    def __init__(self, encoder: Any) -> None:
        self._encoder, self.int8 = encoder, getattr(encoder, "int8", False)
        self._vectors: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors (texts, width)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors |= dict(zip(new, self._encoder.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])
