"""Families: rows that were made from each other stay together and are told; rows written one by one are left alone."""

import random

import pytest

from smallfirst.data.copies import find_leaks
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.data.families import FAMILY, find_families, one_of_each, with_families

_WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in ("ar", "el", "im", "os") for c in ("do", "ta", "ru", "ne", "pi")]


def independent(n: int, seed: int = 0) -> list[str]:
    """Texts of ten words each, drawn alone; some words are ten times as frequent as others."""
    draw, weights = random.Random(seed), [1 / (i + 5) for i in range(len(_WORDS))]
    return [" ".join(draw.choices(_WORDS, weights, k=10)) for _ in range(n)]


def made_from(base: str, draw: random.Random) -> str:
    """A fifth of the words left out, after a greeting."""
    return " ".join([draw.choice(["hi", "hello", "dear team"]), *(w for w in base.split() if draw.random() > 0.2)])


def dataset(texts: list[str], **more: str) -> Dataset:
    rows = enumerate(texts, start=1)
    examples = (
        Example(
            messages=(Message(role="user", content=text),), answer="a", shape="label", path="x.jsonl", line=i, **more
        )
        for i, text in rows
    )
    return Dataset(name="x", examples=tuple(examples))


def reworded(n: int = 100, times: int = 3) -> list[str]:
    draw = random.Random(1)
    return [made_from(base, draw) for base in independent(n) for _ in range(times)]


def test_rows_made_three_times_from_each_base_row_are_families() -> None:
    found = find_families(reworded())
    together = sum(found[3 * i] == found[3 * i + k] for i in range(100) for k in (1, 2))
    assert together >= 180
    assert 80 <= len(set(found)) <= 130


@pytest.mark.parametrize("n", [20, 200, 1000])
def test_rows_written_one_by_one_have_no_families(n: int) -> None:
    assert find_families(independent(n)) == list(range(n))


def test_large_families_of_a_template_are_found() -> None:
    draw = random.Random(2)
    texts = [f"{base} {draw.randrange(9999)} {draw.choice(_WORDS)}" for base in independent(20) for _ in range(30)]
    found = find_families(texts)
    assert [len(set(found[30 * i : 30 * i + 30])) for i in range(20)] == [1] * 20


def test_relatives_in_another_file_are_leaks_and_a_test_family_counts_once() -> None:
    texts = reworded()
    train, test = dataset(texts[::3]), dataset([*texts[1::3], *texts[2::3]])
    (train, test), told = with_families([train, test])
    assert told[0].level == "fix"
    assert "families" in told[0].what
    assert 'x.jsonl:1 "' in told[0].where[0]
    assert find_leaks(train, test).n_leaked >= 180
    kept, others = one_of_each(test)
    assert len(kept) + len(others) == 200
    assert len(others) >= 80
    assert all(row.group.startswith(FAMILY) for row in others.examples)


def test_rows_with_a_group_keep_it_and_a_set_without_families_is_unchanged() -> None:
    grouped, alone = dataset(reworded(), group="ours"), dataset(independent(200))
    assert with_families([grouped]) == ([grouped], [])
    assert with_families([alone]) == ([alone], [])
    assert one_of_each(alone)[0] == alone
