from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.data.quality.near_duplicates import near_duplicates

TEN = "one two three four five six seven eight nine ten"


def test_nine_words_of_ten_are_near_and_eight_are_not() -> None:
    known = [TEN, "quite another text"]
    assert near_duplicates(known, [TEN.removesuffix(" ten")]) == [(0, 0)]
    assert near_duplicates(known, [TEN.removesuffix(" nine ten")]) == []


def test_order_and_repetition_of_words_do_not_count() -> None:
    assert near_duplicates(["where is my card"], ["my card, my card, where is it?"]) == []
    assert near_duplicates(["where is my card"], ["my card, my card, where is?"]) == [(0, 0)]


def test_texts_equal_when_folded_are_left_out() -> None:
    assert near_duplicates(["my card where", "where my card"], ["Where my card?!"]) == []


def test_a_shared_template_does_not_make_rows_alike() -> None:
    template = "answer the customer politely in two short sentences and name the article "
    template += "of our terms that applies to this case "
    known = [template + f"question{i} about{i}" for i in range(60)]
    assert near_duplicates(known, [template + "question7 about9"]) == []
    assert near_duplicates(known, [template + "about9 question9"]) == [(0, 9)]


def test_words_that_share_a_bit_are_still_told_apart() -> None:
    # Once-seen words rank by spelling, and ranks 0, 1, 2 share their bits with 1024, 1025, 1026.
    once = [f"a{i:04}" for i in range(1027)]
    both = " ".join(f"b{i}" for i in range(50))
    known = [" ".join([both, *once[:3]]), " ".join(once[3:1024])]
    assert near_duplicates(known, [" ".join([both, *once[1024:]])]) == []
    assert near_duplicates(known, [" ".join([both, *once[1025:]])]) == [(0, 0)]
    assert near_duplicates(known, [both]) == [(0, 0)]


sentences = st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=14).map(" ".join), max_size=8)


@settings(max_examples=150, deadline=None)
@given(sentences, sentences)
def test_exactly_the_texts_with_a_similar_one_are_found(known: list[str], new: list[str]) -> None:
    def similar(a: str, b: str) -> bool:
        x, y = set(a.split()), set(b.split())
        return bool(x and y) and len(x & y) / len(x | y) >= 0.9

    near = [j for j, t in enumerate(new) if t not in known and any(similar(t, k) for k in known)]
    pairs = near_duplicates(known, new)
    assert [j for j, _ in pairs] == near
    assert all(similar(new[j], known[i]) for j, i in pairs)
