"""What a text takes in a sentence encoder on this machine, measured on a few of a task's own texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

SAMPLE_ROWS = 32
"""Texts on which an encoder is timed."""


class EncoderPace(NamedTuple):
    """What an encoder takes for a text, in seconds."""

    read_s: float
    train_s: float
    """Forwards and backwards in bf16."""
    tokens: float
    """Mean tokens of a text."""
    parameters: int


@cache
def encoder_pace(folder: Path, texts: tuple[str, ...]) -> EncoderPace:
    """Measure an encoder on `texts`, read as they are served and trained on in bf16; takes a second or two."""
    from smallfirst.models.encoder.sentence_encoder import SentenceEncoder

    served, encoder = SentenceEncoder.for_inference(folder), SentenceEncoder(folder)
    import torch  # of an extra, whose absence was told above

    served.embed(texts)  # the first call is slower
    read_s = _seconds(lambda: served.embed(texts)) / len(texts)
    ids = [encoder.tokens(text) for text in texts]
    encoder.model.to(torch.bfloat16)

    def step(rows: list[list[int]]) -> None:
        encoder.vectors(rows).sum().backward()

    step(ids[:8])
    train_s = _seconds(lambda: step(ids)) / len(texts)
    parameters = sum(p.numel() for p in encoder.model.parameters())
    return EncoderPace(read_s, train_s, sum(map(len, ids)) / len(ids), parameters)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
