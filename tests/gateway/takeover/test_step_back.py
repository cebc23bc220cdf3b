"""What counts as a change: requests that miss every wording, cases that begin or end alike, drafts that differ more."""

from __future__ import annotations

from smallfirst.gateway.takeover.step_back import (
    MAX_TENANTS,
    N_RECENT,
    N_SAME,
    N_USUAL,
    DraftWatch,
    Watches,
    WordingWatch,
)


def test_a_wording_that_nobody_follows_any_more_has_changed():
    watch = WordingWatch()
    for n in range(10):
        assert not watch.followed(f"case {n} is about {n}")
    found = [watch.missed() for _ in range(N_RECENT)]
    first = next(i for i, why in enumerate(found) if why)
    assert first + 1 == 36  # 36 of the last 40 follow none
    assert "36 of the last 40 requests" in found[first]


def test_some_requests_beside_the_wording_change_nothing():
    watch = WordingWatch()
    for n in range(200):
        assert not watch.followed(f"case {n} is about {n}")
        assert not watch.missed()


def test_instructions_that_grew_into_the_slot_are_noticed():
    watch = WordingWatch()
    found = [watch.followed(f"case {n}\nAnswer in German, please.") for n in range(N_SAME)]
    assert not any(found[:-1])
    assert "all end with" in found[-1]
    assert "Answer in German" in found[-1]
    before = WordingWatch()
    assert "all begin with" in [before.followed(f"Think step by step: {n}") for n in range(N_SAME)][-1]


def test_the_same_case_again_and_again_is_no_wording():
    watch = WordingWatch()
    assert not any(watch.followed("the very same question again") for _ in range(3 * N_SAME))


def test_long_cases_that_differ_in_the_middle_are_different_and_are_not_kept():
    watch, around = WordingWatch(), "Answer in German, please. " * 10_000
    assert "all begin with" in [watch.followed(f"{around}{n}{around}") for n in range(N_SAME)][-1]
    assert sum(len(text) for case in watch._cases for text in case[1:]) < 2_000


def test_each_tenant_is_watched_apart_and_of_many_the_last_ones():
    watches = Watches()
    for _ in range(N_RECENT):
        watches.of("ada").wording.missed()
    assert not watches.of("bob").wording.missed()
    assert watches.of("ada").wording.missed()
    for n in range(MAX_TENANTS - 1):
        watches.of(str(n))
        watches.of("ada")
    assert watches.of("ada").wording.missed()
    assert len(watches._by_tenant) == MAX_TENANTS


def test_drafts_that_differ_more_often_than_usual_are_noticed_and_usual_ones_are_not():
    watch, same = DraftWatch(), DraftWatch()
    for n in range(N_USUAL):
        assert not watch.compared(n % 10 < 3)  # 30 %
        assert not same.compared(n % 10 < 3)
    assert not any(same.compared(n % 10 < 3) for n in range(2000))
    after = [watch.compared(n % 2 == 0) for n in range(400)]
    first = next(i for i, why in enumerate(after) if why)
    assert first < 250
    # The upper 97.5 % bound of 120 of 400 is 0.348.
    assert "34.8 % at most were usual" in after[first]
