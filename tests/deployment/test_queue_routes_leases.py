"""Two people get different answers, whichever process they ask; a lease ends, is renewed and taken over."""

from __future__ import annotations

import asyncio

from smallfirst.deployment.queue_routes import LEASE_S, MARKED_S, Holder, Leases
from smallfirst.serving.ledger.shared_state import MemoryState

ADA, BEN, CY = Holder("", "ada's window"), Holder("", "ben's window"), Holder("", "a third")
IDS = ["a", "b"]


def test_two_people_get_different_answers_until_a_lease_ends() -> None:
    async def work() -> None:
        now = [0.0]
        state = MemoryState(lambda: now[0])
        one, other = Leases(state), Leases(state)  # of two processes
        assert (await one.claim(IDS, ADA), await other.claim(IDS, BEN)) == ("a", "b")
        assert await one.claim(IDS, CY) is None
        now[0] = LEASE_S - 1
        assert await other.claim(IDS, ADA) == "a"  # renewed
        now[0] = LEASE_S + 1
        assert await one.holders() == {"a": ADA}
        assert await one.claim(IDS, CY) == "b"

    asyncio.run(work())


def test_what_is_skipped_goes_to_others_and_what_is_claimed_lets_go_of_the_last() -> None:
    async def work() -> None:
        leases = Leases(MemoryState())
        assert await leases.claim(IDS, ADA) == "a"
        await leases.skip("a", ADA)
        assert (await leases.claim(IDS, ADA), await leases.claim(IDS, BEN)) == ("b", "a")
        assert await leases.claim(["a"], ADA, take_over=True) == "a"
        assert await leases.holders() == {"a": ADA}
        await leases.release("a", marked=False)
        assert await leases.claim(IDS, BEN) == "a"

    asyncio.run(work())


def test_what_one_process_marked_is_offered_by_no_other_whose_order_still_has_it() -> None:
    async def work() -> None:
        now = [0.0]
        leases = Leases(MemoryState(lambda: now[0]))
        assert await leases.claim(IDS, ADA) == "a"
        await leases.release("a", marked=True)
        assert await leases.holders() == {}
        assert (await leases.claim(IDS, BEN), await leases.claim(IDS, CY)) == ("b", None)
        assert await leases.claim(["a"], CY, take_over=True) == "a"  # who names it gets it
        await leases.release("a", marked=True)
        now[0] = MARKED_S + 1
        assert await leases.claim(IDS, CY) == "a"

    asyncio.run(work())
