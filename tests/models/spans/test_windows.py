"""Long texts in windows: every token once, with the state that its own window gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.spans.windows import WindowReader


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder_folder)


def test_places_are_those_of_the_characters(encoder: SentenceEncoder) -> None:
    text = "my refund, my card"
    found = WindowReader(encoder, 16).tokenize(text)
    words = [text[start:end].strip() for start, end in found.places if end > start]
    assert "".join(words) == text.replace(" ", "")
    assert len(found.ids) == len(found.places)


def test_a_text_of_one_window_has_the_encoders_own_states(encoder: SentenceEncoder) -> None:
    reader = WindowReader(encoder, 64)
    rows = [reader.tokenize(text).ids for text in ("my card", "where is my refund")]
    with torch.inference_mode():
        states, mask = reader.states(rows)
        own, own_mask = encoder.hidden_states(rows)
    assert torch.equal(states, own)
    assert torch.equal(mask, own_mask)


@pytest.mark.parametrize("n_words", [9, 17, 40])
def test_each_token_of_a_long_text_is_kept_once_and_in_order(encoder: SentenceEncoder, n_words: int) -> None:
    reader = WindowReader(encoder, 8)
    ids = reader.tokenize("card pin refund euro " * n_words).ids
    windows = list(reader._windows(ids))
    assert [token for window in windows for token in window.ids[window.kept]] == list(ids)
    assert max(len(window.ids) for window in windows) <= 8
    with torch.inference_mode():
        states, mask = reader.states([ids, ids[:5]])
        first, _ = encoder.hidden_states([windows[0].ids])
    assert mask.sum(1).tolist() == [len(ids), 5]
    assert states[0, :4] == pytest.approx(first[0, :4], abs=1e-5)


def test_special_tokens_stand_around_every_window_and_are_kept_once(encoder: SentenceEncoder) -> None:
    reader = WindowReader(encoder, 8)
    reader._special = (1, 1)
    ids = [101, *range(30), 102]
    windows = list(reader._windows(ids))
    assert {(window.ids[0], window.ids[-1]) for window in windows} == {(101, 102)}
    assert [token for window in windows for token in window.ids[window.kept]] == ids
