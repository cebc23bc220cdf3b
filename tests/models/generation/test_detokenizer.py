"""Text shown while its tokens arrive adds up to the whole, in whole characters, without a stop text."""

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


def deltas(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], IncrementalDetokenizer]:
    """The text shown after each token and at the end, and the detokenizer."""
    detokenizer, shown = IncrementalDetokenizer(tokenizer, stop), []
    for token in tokenizer.encode(text, add_special_tokens=False):
        detokenizer.add([token])
        shown.append(detokenizer.take_text())
    detokenizer.finish()
    return [*shown, detokenizer.take_text(last=True)], detokenizer


@pytest.mark.parametrize("text", ["the card", "größe 🙂 日本", "  in the  middle \n", "", " ", "🙂"])
def test_deltas_are_whole_characters_and_add_up(tokenizer: Any, text: str) -> None:
    shown, detokenizer = deltas(tokenizer, text)
    assert "".join(shown) == text.strip()
    assert detokenizer.text == text
    assert not any(REPLACEMENT in delta for delta in shown)


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_with_any_text_and_any_stop(tokenizer: Any, text: str, stop: list[str]) -> None:
    shown, detokenizer = deltas(tokenizer, text, tuple(stop))
    places = [text.find(one) for one in stop if one in text]
    assert detokenizer.stopped == bool(places)
    # A stop text may be complete before another one that began earlier: it ends the answer at once.
    assert text.startswith(detokenizer.text)
    assert detokenizer.text.startswith(text[: min(places)] if places else text)
    assert "".join(shown) == detokenizer.text.strip()
    assert not any(one in detokenizer.text for one in stop)


def test_bytes_that_are_not_a_character_are_shown_at_the_end_or_once_they_are_many(tokenizer: Any) -> None:
    for torn in (
        tokenizer.encode("日", add_special_tokens=False)[:-1],
        tokenizer.encode("日", add_special_tokens=False)[-1:] * 40,
    ):
        detokenizer = IncrementalDetokenizer(tokenizer)
        for token in torn:
            detokenizer.add([token])
        shown = detokenizer.take_text()
        assert shown == "" if len(torn) < 12 else len(shown) >= 40 - 12 - 1
        detokenizer.finish()
        assert shown + detokenizer.take_text(last=True) == detokenizer.text == tokenizer.decode(torn)


def test_no_part_of_a_stop_text_is_ever_shown(tokenizer: Any) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, ("card",))
    shown = ""
    for word in ("my ", "c", "a", "b c", "a", "r", "d", "!"):
        detokenizer.add(tokenizer.encode(word, add_special_tokens=False))
        shown += detokenizer.take_text()
        assert shown in ("my", "my cab", ""), shown
    assert detokenizer.stopped
    assert shown + detokenizer.take_text(last=True) == "my cab"


def test_tokens_are_emitted_with_their_text(tokenizer: Any) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, ("x",))
    ids = tokenizer.encode("ab🙂 x", add_special_tokens=False)
    emitted = []
    for token in ids:
        detokenizer.add([token])
        detokenizer.take_text()
        emitted.append(detokenizer.n_emitted())
    detokenizer.finish()
    shown = tokenizer.decode(ids[: detokenizer.n_emitted(last=True)])
    assert emitted == sorted(emitted)
    assert "x" not in shown
    assert shown.startswith("ab🙂")
