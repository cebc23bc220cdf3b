"""Carry people's corrections over to recorded answers to similar cases, which a large model gets wrong alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.models.encoder.sentence_encoder import open_encoder

NEAR = 0.6
"""Cosine similarity from which two cases with the same recorded answer count as one mistake or one success."""
_AT_ONCE = 256


def mended(
    texts: Sequence[str], answers: Sequence[str], corrected: Sequence[tuple[str, str, str]], encoder: Path
) -> list[str]:
    """Return the recorded answers to texts, each replaced by what people said of the nearest case with that answer.

    `corrected` are text, recorded answer and people's answer of cases that people looked at; a case without a near one
    of the same recorded answer keeps its own. `encoder` is the folder of a sentence encoder.
    """
    if not corrected or not texts:
        return list(answers)
    vectors = _vectors([*texts, *(text for text, _, _ in corrected)], encoder)
    similar = vectors[: len(texts)] @ vectors[len(texts) :].T
    same = np.array(answers)[:, None] == np.array([given for _, given, _ in corrected])[None, :]
    similar = np.where(same, similar, -1.0)
    nearest = similar.argmax(axis=1)
    near = similar[np.arange(len(texts)), nearest] >= NEAR
    return [
        corrected[place][2] if is_near else answer
        for answer, place, is_near in zip(answers, nearest, near, strict=True)
    ]


def _vectors(texts: Sequence[str], folder: Path) -> np.ndarray:
    encoder = open_encoder(folder)
    return np.concatenate([encoder.embed(texts[i : i + _AT_ONCE]) for i in range(0, len(texts), _AT_ONCE)])
