"""The pace of an encoder, measured on a tiny one."""

from __future__ import annotations

from pathlib import Path

from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.training.estimates.encoder_pace import encoder_pace


def test_the_pace_is_measured_on_the_texts_that_are_given(tiny_encoder_folder: Path) -> None:
    texts = ("where is my card", "a fee", "my card was lost")
    pace = encoder_pace(tiny_encoder_folder, texts)
    encoder = SentenceEncoder(tiny_encoder_folder)
    assert pace.read_s > 0
    assert pace.train_s > 0
    assert pace.tokens == sum(len(encoder.tokens(text)) for text in texts) / 3
    assert pace.parameters == sum(p.numel() for p in encoder.model.parameters())
