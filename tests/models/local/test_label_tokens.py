"""Label tokens: one a label, all different, taken from the label's own words where possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.errors import ConfigError
from smallfirst.models.local.label_tokens import choose_label_tokens


class WordTokens:
    """A tokenizer that knows whole words (each with its space in front) and splits others to bytes."""

    bos_token_id = eos_token_id = None

    def __init__(self, *words: str) -> None:
        self.words = {f" {word}": 1000 + i for i, word in enumerate(words)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.words[text]] if text in self.words else list(text.encode())

    def chosen(self, *labels: str) -> list[str]:
        by_id = {i: word.strip() for word, i in self.words.items()}
        return [by_id[code] for code in choose_label_tokens(labels, self)]


LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.fixture
def tiny_tokenizer(tiny_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


def test_a_label_is_read_as_its_own_word(tiny_tokenizer: Any) -> None:
    codes = choose_label_tokens(("refund", "Exchange", "payment!"), tiny_tokenizer)
    assert [tiny_tokenizer.decode([code]) for code in codes] == [" refund", " exchange", " payment"]


def test_a_word_shared_by_labels_is_not_chosen() -> None:
    tokens = WordTokens("card", "arrival", "payment", *LETTERS)
    assert tokens.chosen("card_arrival", "card-payment") == ["arrival", "payment"]


def test_of_equally_rare_words_the_first_is_taken() -> None:
    assert WordTokens("lost", "luggage").chosen("lost luggage", "luggage of lost ones") == [
        "lost",
        "luggage",
    ]


def test_camel_case_is_read_as_words() -> None:
    assert WordTokens("order", "status", "parcel").chosen("OrderStatus", "parcelOf") == [
        "order",
        "parcel",
    ]


def test_labels_without_a_word_token_get_letters_in_order() -> None:
    tokens = WordTokens("refund", *LETTERS)
    assert tokens.chosen("12", "refund", "xyzzy", "a b") == ["A", "refund", "B", "C"]


def test_letter_pairs_follow_when_single_letters_are_used_up() -> None:
    assert WordTokens("A", "B", "AB", "BA").chosen("1", "2", "3", "4") == ["A", "B", "AB", "BA"]


def test_a_letter_that_is_no_single_token_is_left_out() -> None:
    assert WordTokens("B", "D").chosen("1", "2") == ["B", "D"]


def test_too_small_a_vocabulary_is_an_error_that_counts_the_labels() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_label_tokens(("1", "2", "3"), WordTokens("A", "B"))
    assert str(caught.value) == "this tokenizer has too few single-token words for 3 labels"


def test_the_token_for_unknown_words_is_never_chosen() -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "refund": 1, "A": 2}, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?")
    assert choose_label_tokens(("zebra", "refund"), words) == (2, 1)


@given(
    st.lists(
        st.text("abcdeABCDE_ 1", max_size=12) | st.sampled_from(["card arrival", "card", "cardRefund", "refund"]),
        min_size=1,
        max_size=30,
        unique=True,
    )
)
def test_label_tokens_are_distinct_and_reproducible(labels: list[str]) -> None:
    tokens = WordTokens("card", "arrival", "refund", *LETTERS, *(f"A{a}" for a in LETTERS))
    codes = choose_label_tokens(labels, tokens)
    assert len(codes) == len(set(codes)) == len(labels)
    assert set(codes) <= set(tokens.words.values())
    assert choose_label_tokens(labels, tokens) == codes
