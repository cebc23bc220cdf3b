import re
from collections import Counter
from functools import partial
from random import Random

import pytest
from fixtures.rows import answered_rows, text_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.data.dataset import Dataset, Example, Message, fold_text, sample_rows, split


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message.model_validate({"role": role, "content": said}) for role, said in turns)


def labelled(text: str, label: str, line: int = 0) -> Example:
    return Example(messages=chat(("user", text)), answer=label, shape="label", line=line)


@pytest.mark.parametrize(("text", "plain"), [
    ("  My CARD,\n is lost!", "my card is lost"), ("it's 1.5_x", "it s 1 5 x"), ("Straße", "strasse"),
    ("cafe\u0301 \uff21", "café a"), ("?! ?!", "?! ?!"), (" ", ""),
])  # fmt: skip
def test_folding_keeps_the_words_and_drops_their_dress(text: str, plain: str) -> None:
    assert fold_text(text) == plain


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_folded_as_any_text(text: str) -> None:
    plain = text.casefold()
    assert fold_text(text) == (re.sub(r"[\W_]+", " ", plain).strip() or " ".join(plain.split()))


def test_a_datasets_fingerprint_ignores_order_and_sees_every_edit() -> None:
    a, b = labelled("a", "x"), labelled("b", "y")
    one = Dataset(name="one", examples=(a, b))
    assert len(one) == 2
    assert one.labels() == ("x", "y")
    assert one.content_fingerprint == one.subset("two", (b, a)).content_fingerprint
    assert one.content_fingerprint != one.subset("two", (a, b, b)).content_fingerprint
    assert one.content_fingerprint != one.subset("two", (a,)).content_fingerprint


rows = partial(text_rows, "rows.jsonl")


def places(data: Dataset) -> dict[str, str]:
    """The part that each text went to; fails if one text is in two parts."""
    parts = split(data, validation=0.3, test=0.3)
    place: dict[str, str] = {}
    for name in ("train", "validation", "test"):
        for example in getattr(parts, name).examples:
            assert place.setdefault(fold_text(example.text), name) == name
    return place


# Few letters and much dressing, so that equal texts in other dress are common.
texts = st.lists(st.text("abAB .,\n", min_size=1, max_size=4), max_size=30)
THOUSAND = rows(*(f"text number {i}" for i in range(1000)))


@settings(max_examples=50, deadline=None)
@given(texts)
def test_every_row_lands_in_exactly_one_part_in_file_order(given_texts: list[str]) -> None:
    data = rows(*given_texts)
    parts = split(data, validation=0.3, test=0.3)
    lines = [[e.line for e in p.examples] for p in (parts.train, parts.validation, parts.test)]
    assert all(part == sorted(part) for part in lines)
    assert sorted(line for part in lines for line in part) == [e.line for e in data.examples]


@settings(max_examples=50, deadline=None)
@given(texts, st.randoms(use_true_random=False))
def test_a_text_stays_where_it_is_when_rows_are_moved(old: list[str], random: Random) -> None:
    before = places(rows(*old))
    random.shuffle(old)
    assert places(rows(*old)) == before


def test_a_row_that_is_added_moves_at_most_the_two_at_the_borders() -> None:
    texts = [f"text number {i}" for i in range(60)]
    for n in range(20, 60):
        before, after = places(rows(*texts[:n])), places(rows(*texts[: n + 1]))
        assert sum(after[text] != part for text, part in before.items()) <= 2


def test_every_label_has_its_share_in_every_part() -> None:
    pairs = [(f"{label} {i}", label) for label, n in (("card", 50), ("fee", 10), ("pin", 5)) for i in range(n)]
    parts = split(answered_rows("rows.csv", *pairs), validation=0.2, test=0.2)
    held_out = [Counter(e.answer for e in part.examples) for part in (parts.validation, parts.test)]
    assert held_out == [Counter(card=10, fee=2, pin=1)] * 2


def test_rows_of_a_group_stay_together_and_count_all() -> None:
    examples = tuple(
        labelled(f"text {group} {i}", ("card", "fee")[i % 2]).model_copy(update={"group": f"customer {group}"})
        for group in range(50)
        for i in range(4)
    )
    parts = split(Dataset(name="rows", examples=examples), validation=0.2, test=0.2)
    groups = [{e.group for e in part.examples} for part in (parts.train, parts.validation, parts.test)]
    assert [len(group) for group in groups] == [30, 10, 10]
    assert len(set.union(*groups)) == 50


def test_a_split_does_not_change_from_one_release_to_the_next() -> None:
    # By sha256sum of "split\0\0" + text, over 2**256: alpha 0.03, epsilon 0.14, gamma 0.25, delta 0.30, beta 0.84; of
    # "split\0\0label\0x": 0.67. The first has the place (1 - 0.67) / 5, the next ones 0.2 more.
    parts = split(rows("alpha", "beta", "gamma", "delta", "epsilon"), validation=0.1, test=0.2)
    assert [e.text for e in parts.test.examples] == ["alpha"]
    assert [e.text for e in parts.validation.examples] == ["epsilon"]


def test_the_test_part_does_not_depend_on_the_validation_share() -> None:
    small = split(THOUSAND, validation=0.05, test=0.2)
    large = split(THOUSAND, validation=0.5, test=0.2)
    assert small.test == large.test
    assert set(small.validation.examples) < set(large.validation.examples)


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (-0.1, 0.1, "validation must be a share between 0 and 1 (got -0.1)"),
        (0.1, float("nan"), "test must be a share between 0 and 1 (got nan)"),
        (0.5, 0.5, "validation 0.5 and test 0.5 leave no rows to train on: their sum must be below 1"),
    ],
)
def test_shares_that_cannot_be_are_refused(validation: float, test: float, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split(THOUSAND, validation=validation, test=test)
    assert str(caught.value) == message


def test_a_sample_has_the_asked_number_of_rows_and_is_the_same_every_time() -> None:
    data = rows(*(f"text {i}" for i in range(200)))
    for n in (1, 7, 60, 199):
        taken = sample_rows(data, n)
        assert len(taken) == n
        assert taken == sample_rows(data, n)
        assert {e.key for e in taken.examples} < {e.key for e in data.examples}
        backwards = sample_rows(data.subset("rows", data.examples[::-1]), n)
        assert {e.key for e in backwards.examples} == {e.key for e in taken.examples}


def test_rows_that_a_model_labelled_train_beside_those_of_people_and_are_split_where_there_are_no_others() -> None:
    people = rows(*(f"text {i}" for i in range(40)))
    model = tuple(e.model_copy(update={"source": "big"}) for e in rows(*(f"more {i}" for i in range(40))).examples)
    mixed = split(people.subset("both", (*people.examples, *model)), validation=0.25, test=0.25)
    assert not any(e.source for e in (*mixed.validation.examples, *mixed.test.examples))
    log = split(people.subset("log", model), validation=0.25, test=0.25)
    assert (len(log.validation), len(log.test)) == (10, 10)
