"""Text shown while its tokens arrive adds up to the whole, in whole characters, without a stop text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.models.generation.sequence import REPLACEMENT, AnswerText


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Any) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


def deltas(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], AnswerText]:
    """What is shown after each token and at the end, and the answer's text."""
    answer, shown, ids = AnswerText(tokenizer, stop), [], tokenizer.encode(text, add_special_tokens=False)
    for n in range(len(ids)):
        answer.follow(ids[: n + 1])
        shown.append(answer.take())
    answer.finish()
    return [*shown, answer.take(last=True)], answer


@pytest.mark.parametrize("text", ["the card", "größe 🙂 日本", "  in the  middle \n", "", " ", "🙂"])
def test_deltas_are_whole_characters_and_add_up(tokenizer: Any, text: str) -> None:
    shown, answer = deltas(tokenizer, text)
    assert "".join(shown) == text.strip()
    assert answer.text == text
    assert not any(REPLACEMENT in delta for delta in shown)


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_with_any_text_and_any_stop(tokenizer: Any, text: str, stop: list[str]) -> None:
    shown, answer = deltas(tokenizer, text, tuple(stop))
    places = [text.find(one) for one in stop if one in text]
    assert answer.stopped == bool(places)
    # A stop text may be complete before another one that began earlier: it ends the answer at once.
    assert text.startswith(answer.text)
    assert answer.text.startswith(text[: min(places)] if places else text)
    assert "".join(shown) == answer.text.strip()
    assert not any(one in answer.text for one in stop)


def test_bytes_that_are_not_a_character_are_shown_at_the_end_or_once_they_are_many(tokenizer: Any) -> None:
    for torn in (
        tokenizer.encode("日", add_special_tokens=False)[:-1],
        tokenizer.encode("日", add_special_tokens=False)[-1:] * 40,
    ):
        answer = AnswerText(tokenizer)
        for n in range(len(torn)):
            answer.follow(torn[: n + 1])
        shown = answer.take()
        assert shown == "" if len(torn) < 12 else len(shown) >= 40 - 12 - 1
        answer.finish()
        assert shown + answer.take(last=True) == answer.text == tokenizer.decode(torn)


def test_no_part_of_a_stop_text_is_ever_shown(tokenizer: Any) -> None:
    answer = AnswerText(tokenizer, ("card",))
    shown, ids = "", []
    for word in ("my ", "c", "a", "b c", "a", "r", "d", "!"):
        ids += tokenizer.encode(word, add_special_tokens=False)
        answer.follow(ids)
        shown += answer.take()
        assert shown in ("my", "my cab", ""), shown
    assert answer.stopped
    assert shown + answer.take(last=True) == "my cab"
