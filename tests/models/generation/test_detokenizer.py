"""Text that is shown while its tokens come adds up to the whole, in whole characters, without a stop text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.models.generation.detokenizer import REPLACEMENT, IncrementalDetokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Any) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


def said(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], IncrementalDetokenizer]:
    """What is shown after each token, and last."""
    speech, pieces = IncrementalDetokenizer(tokenizer, stop), []
    for token in tokenizer.encode(text, add_special_tokens=False):
        speech.add([token])
        pieces.append(speech.take_text())
    speech.finish()
    return [*pieces, speech.take_text(last=True)], speech


@pytest.mark.parametrize("text", ["the card", "größe 🙂 日本", "  in the  middle \n", "", " ", "🙂"])
def test_pieces_are_whole_characters_and_add_up(tokenizer: Any, text: str) -> None:
    pieces, speech = said(tokenizer, text)
    assert "".join(pieces) == text.strip()
    assert speech.text == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_with_any_text_and_any_stop(tokenizer: Any, text: str, stop: list[str]) -> None:
    pieces, speech = said(tokenizer, text, tuple(stop))
    places = [text.find(one) for one in stop if one in text]
    assert speech.stopped == bool(places)
    wanted = text[: min(places)] if places else text
    # A stop text may be complete before another one that began earlier: it ends the answer at once.
    assert text.startswith(speech.text)
    assert speech.text.startswith(wanted)
    assert "".join(pieces) == speech.text.strip()
    assert not any(one in speech.text for one in stop)


def test_bytes_that_are_no_character_are_shown_in_the_end(tokenizer: Any) -> None:
    torn = tokenizer.encode("日", add_special_tokens=False)[:-1]
    speech = IncrementalDetokenizer(tokenizer)
    speech.add(torn)
    assert speech.take_text() == ""
    speech.finish()
    assert speech.take_text(last=True) == tokenizer.decode(torn)


def test_endless_nonsense_is_not_held_back_for_ever(tokenizer: Any) -> None:
    torn = tokenizer.encode("日", add_special_tokens=False)[-1:] * 40
    speech = IncrementalDetokenizer(tokenizer)
    for token in torn:
        speech.add([token])
    assert len(speech.take_text()) >= 40 - 12 - 1
    speech.finish()
    assert speech.text == tokenizer.decode(torn)


def test_no_part_of_a_stop_text_is_ever_shown(tokenizer: Any) -> None:
    speech = IncrementalDetokenizer(tokenizer, ("card",))
    shown = ""
    for word in ("my ", "c", "a", "b c", "a", "r", "d", "!"):
        speech.add(tokenizer.encode(word, add_special_tokens=False))
        shown += speech.take_text()
        assert shown in ("my", "my cab", ""), shown
    assert speech.stopped
    assert shown + speech.take_text(last=True) == "my cab"


def test_tokens_are_told_with_their_text(tokenizer: Any) -> None:
    speech = IncrementalDetokenizer(tokenizer, ("x",))
    ids = tokenizer.encode("ab🙂 x", add_special_tokens=False)
    told = []
    for token in ids:
        speech.add([token])
        speech.take_text()
        told.append(speech.n_emitted())
    speech.finish()
    shown = tokenizer.decode(ids[: speech.n_emitted(last=True)])
    assert told == sorted(told)
    assert "x" not in shown
    assert shown.startswith("ab🙂")
