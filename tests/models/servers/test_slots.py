"""Slots are given out in turn, to their tenants where that is possible, and the queue is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fixtures.event_loop import in_loop

from smallfirst.base.errors import Unavailable
from smallfirst.models.servers.slots import Slot, SlotPool


def pool(n: int = 1) -> SlotPool:
    return SlotPool(n, name="engine")


async def visit(slots: SlotPool, tenant: str, *, timeout_s: float = 60) -> Slot:
    async with slots.acquire(tenant, timeout_s=timeout_s) as slot:
        return slot


async def queued(slots: SlotPool, tenant: str) -> asyncio.Task[Slot]:
    """A request that waits for a slot."""
    task = asyncio.create_task(visit(slots, tenant))
    await asyncio.sleep(0)
    return task


@asynccontextmanager
async def busy(slots: SlotPool) -> AsyncIterator[None]:
    """A slot is in use by a."""
    async with slots.acquire("a", timeout_s=60):
        yield


@in_loop
async def test_tenants_get_their_own_slot_back_and_the_longest_idle_one_otherwise() -> None:
    two = pool(2)
    # cid takes bob's slot, idle for longest; bob then takes ann's; ann is left with cid's.
    assert [await visit(two, tenant) for tenant in ("ann", "bob", "ann", "cid", "bob", "ann")] == [
        Slot(0, False),
        Slot(1, False),
        Slot(0, True),
        Slot(1, False),
        Slot(0, False),
        Slot(1, False),
    ]


@in_loop
async def test_queued_requests_are_served_in_order() -> None:
    one, order = pool(), list[str]()
    async with busy(one):
        tasks = [await queued(one, tenant) for tenant in "bcd"]
        for tenant, task in zip("bcd", tasks, strict=True):
            task.add_done_callback(lambda _, tenant=tenant: order.append(tenant))
        assert (one.n_free, one.n_queued) == (0, 3)
    await asyncio.gather(*tasks)
    assert order == ["b", "c", "d"]
    assert (one.n_free, one.n_queued) == (1, 0)


@in_loop
async def test_queue_is_bounded_for_tenants_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.models.servers.slots.MAX_QUEUED_REQUESTS", 1)
    one = pool()
    async with busy(one):
        waiting = [await queued(one, "a")]
        with pytest.raises(Unavailable, match="1 requests in flight, 1 queued"):
            await visit(one, "b")
        waiting += [await queued(one, "") for _ in range(50)]
    assert len(await asyncio.gather(*waiting)) == 51


@in_loop
async def test_timeout_and_cancellation_leave_nothing_in_the_queue() -> None:
    one = pool()
    async with busy(one):
        with pytest.raises(Unavailable, match=r"no slot was free within 0\.01 s"):
            await visit(one, "b", timeout_s=0.01)
        leaver = await queued(one, "c")
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        assert one.n_queued == 0
    assert await visit(one, "a") == Slot(0, True)


@in_loop
async def test_slot_of_a_waiter_that_leaves_goes_to_the_next() -> None:
    one = pool()
    async with busy(one):
        leaver, last = await queued(one, "b"), await queued(one, "c")
    leaver.cancel()  # b has been given the slot at this very moment
    assert await last == Slot(0, False)
    assert one.n_free == 1


@in_loop
async def test_cache_is_not_reused_where_the_last_prompt_may_not_have_been_read() -> None:
    """The slot is b's by name, and what it has cached may still be a's."""
    one = pool()
    assert await visit(one, "a") == Slot(0, False)
    with pytest.raises(RuntimeError):
        async with one.acquire("b", timeout_s=60):
            raise RuntimeError("the engine was away")
    assert await visit(one, "b") == Slot(0, False)
    async with busy(one):
        leaver = await queued(one, "c")
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert await visit(one, "c") == Slot(0, False)


@in_loop
async def test_waiter_whose_loop_has_closed_is_passed_over() -> None:
    one, loop = pool(), asyncio.get_running_loop()
    call_soon = loop.call_soon_threadsafe

    def closed(callback: Callable[..., None], *args: object) -> None:
        raise RuntimeError("Event loop is closed")

    async with busy(one):
        gone = await queued(one, "b")
        loop.call_soon_threadsafe = closed
    loop.call_soon_threadsafe = call_soon
    gone.cancel()
    # The slot is free again, and still a's: b's prompt never reached it.
    assert await visit(one, "a") == Slot(0, True)


def test_event_loops_share_the_slots() -> None:
    one, held, release = pool(), threading.Event(), threading.Event()

    async def hold_until_released() -> None:
        async with busy(one):
            held.set()
            await asyncio.to_thread(release.wait)

    async def wait_for_it() -> Slot:
        task = await queued(one, "b")
        assert one.n_queued == 1
        release.set()
        return await task

    other = threading.Thread(target=asyncio.run, args=(hold_until_released(),))
    other.start()
    held.wait()
    assert asyncio.run(wait_for_it()) == Slot(0, False)
    other.join()
    assert one.n_free == 1
