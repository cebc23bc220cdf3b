"""Exchanges become cases, and the others are counted by reason."""

from __future__ import annotations

from fixtures.traffic import exchange

from smallfirst.traffic.discovery.cases import read_cases


def test_cases_are_in_the_order_of_time_and_the_others_are_counted() -> None:
    embedding = exchange(3, "s", "u", "a", route="/v1/embeddings")
    failed = exchange(4, "s", "u", "a", status=429)
    empty = exchange(5, "s", "u", "a", response={"error": "?"})
    long = exchange(6, "s", "x" * 100_001, "a")
    read = read_cases([exchange(2, "s", "u", "a"), exchange(1, "s", "v", "b"), embedding, failed, empty, long])
    assert [case.id for case in read.cases] == ["x1", "x2"]
    assert read.cases[0].answer.text == "b"
    assert read.cases[0].answered_by == "big-2026"
    assert sum(read.left_out.values()) == 4
    assert set(read.left_out) == {
        "/v1/embeddings: no messages",
        "answered with an error",
        "no answer recorded",
        "longer than 100,000 characters",
    }


def test_equal_texts_are_kept_once() -> None:
    first, second = read_cases([exchange(i, "".join(["the", " same"]), str(i), "a") for i in (1, 2)]).cases
    assert first.prompt.turns[0].text is second.prompt.turns[0].text


def test_of_more_cases_than_are_held_each_is_drawn_alike() -> None:
    read = read_cases((exchange(i, "s", f"u{i}", "a") for i in range(4000)), most=1000)
    assert (len(read.cases), read.n) == (1000, 4000)
    numbers = [int(case.id[1:]) for case in read.cases]
    assert numbers == sorted(set(numbers))
    quarters = [sum(number // 1000 == quarter for number in numbers) for quarter in range(4)]
    assert all(195 < n < 305 for n in quarters)  # 250 each, four standard errors of 13.7
