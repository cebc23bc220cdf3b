"""Slots are given out in turn, to their tenants where that is possible, and the queue is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from fixtures.event_loop import in_loop

from smallfirst.errors import Unavailable
from smallfirst.models.servers.slots import Slot, SlotPool


def pool(n: int = 1, max_requests: int = 4) -> SlotPool:
    return SlotPool(n, name="engine", max_queued_requests=max_requests, max_queued_characters=100)


async def visit(slots: SlotPool, tenant: str) -> Slot:
    async with slots.acquire(tenant, 1, timeout_s=60) as slot:
        return slot


async def hold(slots: SlotPool, tenant: str, until: asyncio.Event, order: list[str] | None = None) -> Slot:
    async with slots.acquire(tenant, 1, timeout_s=60) as slot:
        if order is not None:
            order.append(tenant)
        await until.wait()
        return slot


def test_tenants_get_their_own_slot_back_and_the_longest_idle_one_otherwise() -> None:
    async def run() -> list[Slot]:
        two = pool(2)
        return [await visit(two, tenant) for tenant in ("ann", "bob", "ann", "cid", "bob", "ann")]

    # cid takes bob's slot, idle for longest; bob then takes ann's; ann is left with cid's.
    assert asyncio.run(run()) == [
        Slot(0, False),
        Slot(1, False),
        Slot(0, True),
        Slot(1, False),
        Slot(0, False),
        Slot(1, False),
    ]


def test_queued_requests_are_served_in_order() -> None:
    async def run() -> list[str]:
        one, go, order = pool(), asyncio.Event(), list[str]()
        tasks = []
        for tenant in "abc":
            tasks.append(asyncio.create_task(hold(one, tenant, go, order)))
            await asyncio.sleep(0)
        assert order == ["a"]
        go.set()
        await asyncio.gather(*tasks)
        assert (one.n_free, one.n_queued) == (1, 0)
        return order

    assert asyncio.run(run()) == ["a", "b", "c"]


@in_loop
async def test_queue_is_bounded_by_requests_and_by_characters() -> None:
    one, go = pool(max_requests=1), asyncio.Event()
    holder = asyncio.create_task(hold(one, "a", go))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="takes at most 1 requests with 100 characters"):
        async with one.acquire("a", 101, timeout_s=60):
            pass
    queued = asyncio.create_task(hold(one, "a", go))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="1 requests in flight, 1 with 1 characters queued"):
        await visit(one, "b")
    go.set()
    await asyncio.gather(holder, queued)
    await visit(one, "b")


def test_requests_without_a_tenant_are_not_limited() -> None:
    async def run() -> int:
        one, go = pool(max_requests=0), asyncio.Event()
        tasks = [asyncio.create_task(hold(one, "", go)) for _ in range(50)]
        await asyncio.sleep(0)
        go.set()
        return len(await asyncio.gather(*tasks))

    assert asyncio.run(run()) == 50


@in_loop
async def test_timeout_and_cancellation_leave_nothing_in_the_queue() -> None:
    one, go = pool(), asyncio.Event()
    holder = asyncio.create_task(hold(one, "a", go))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match=r"no slot was free within 0\.01 s"):
        async with one.acquire("b", 1, timeout_s=0.01):
            pass
    leaver = asyncio.create_task(visit(one, "c"))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert one.n_queued == 0
    go.set()
    await holder
    assert await visit(one, "a") == Slot(0, True)
    assert one.n_free == 1


@in_loop
async def test_slot_of_a_waiter_that_leaves_goes_to_the_next() -> None:
    one, go = pool(), asyncio.Event()
    holder = asyncio.create_task(hold(one, "a", go))
    await asyncio.sleep(0)
    leaver, last = asyncio.create_task(visit(one, "b")), asyncio.create_task(visit(one, "c"))
    await asyncio.sleep(0)
    go.set()
    await asyncio.sleep(0)  # the holder leaves: b is woken at this very moment, and leaves
    leaver.cancel()
    await asyncio.gather(holder, leaver, last, return_exceptions=True)
    assert last.result() == Slot(0, False)
    assert one.n_free == 1


@in_loop
async def test_waiter_has_its_slot_before_it_is_woken() -> None:
    """The waiter may be in another thread, which runs as soon as it is woken."""
    one, go, loop = pool(), asyncio.Event(), asyncio.get_running_loop()
    holder = asyncio.create_task(hold(one, "a", go))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(visit(one, "b"))
    await asyncio.sleep(0)
    seen: list[Slot | None] = []
    call_soon = loop.call_soon_threadsafe

    def noted(callback: Callable[[], None]) -> asyncio.Handle:
        seen.append(callback.__self__.slot)
        return call_soon(callback)

    loop.call_soon_threadsafe = noted
    go.set()
    await asyncio.gather(holder, waiting)
    assert seen == [Slot(0, False)]


@in_loop
async def test_waiter_whose_loop_has_closed_is_passed_over() -> None:
    one, go, loop = pool(), asyncio.Event(), asyncio.get_running_loop()
    holder = asyncio.create_task(hold(one, "a", go))
    await asyncio.sleep(0)
    gone = asyncio.create_task(visit(one, "b"))
    await asyncio.sleep(0)

    def closed(callback: Callable[[], None]) -> None:
        raise RuntimeError("Event loop is closed")

    call_soon, loop.call_soon_threadsafe = loop.call_soon_threadsafe, closed
    go.set()
    await holder
    loop.call_soon_threadsafe = call_soon
    gone.cancel()
    # The slot is free again, and still a's: b's prompt never reached it.
    assert await visit(one, "a") == Slot(0, True)


def test_event_loops_share_the_slots() -> None:
    one, held, release = pool(), threading.Event(), threading.Event()

    async def hold_until_released() -> None:
        async with one.acquire("a", 1, timeout_s=60):
            held.set()
            await asyncio.to_thread(release.wait)

    async def wait_for_it() -> Slot:
        task = asyncio.create_task(visit(one, "b"))
        while not one.n_queued:
            await asyncio.sleep(0)
        release.set()
        return await task

    other = threading.Thread(target=asyncio.run, args=(hold_until_released(),))
    other.start()
    held.wait()
    assert asyncio.run(wait_for_it()) == Slot(0, False)
    other.join()
    assert one.n_free == 1
