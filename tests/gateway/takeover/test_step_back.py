"""What counts as a changed prompt: requests that miss every wording, and cases that all begin or end alike."""

from __future__ import annotations

from smallfirst.gateway.takeover.step_back import N_RECENT, N_SAME, WordingWatch


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
