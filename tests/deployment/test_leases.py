"""Two people get different answers; a lease ends, is renewed, taken over, and hinders nobody."""

from __future__ import annotations

from smallfirst.deployment.leases import LEASE_S, Holder, Leases

ADA, BEN = Holder("", "ada's window"), Holder("", "ben's window")


def test_two_people_get_different_answers_until_a_lease_ends() -> None:
    now = [0.0]
    leases = Leases(clock=lambda: now[0])
    ids = ["a", "b"]
    assert (leases.claim(ids, ADA), leases.claim(ids, BEN)) == ("a", "b")
    assert leases.claim(ids, Holder("", "a third")) is None
    now[0] = LEASE_S - 1
    assert leases.claim(ids, ADA) == "a"  # renewed
    now[0] = LEASE_S + 1
    assert (leases.holder("a"), leases.holder("b")) == (ADA, None)
    assert leases.claim(ids, Holder("", "a third")) == "b"


def test_what_is_skipped_goes_to_others_and_what_is_claimed_lets_go_of_the_last() -> None:
    leases = Leases()
    ids = ["a", "b"]
    assert leases.claim(ids, ADA) == "a"
    leases.skip("a", ADA)
    assert (leases.claim(ids, ADA), leases.claim(ids, BEN)) == ("b", "a")
    assert leases.claim(["a"], ADA, take_over=True) == "a"
    assert (leases.holder("a"), leases.holder("b")) == (ADA, None)
    leases.release("a")
    assert leases.claim(ids, BEN) == "a"
