"""Places are handed out in turn, to their tenants where that is possible, and the queue has an end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from smallfirst.errors import Unavailable
from smallfirst.models.servers.slots import Slot, SlotPool


def places(n: int = 1, waiting: int = 4, characters: int = 100) -> SlotPool:
    return SlotPool(n, name="engine", most_waiting=waiting, max_queued_characters=characters)


async def visit(places: SlotPool, tenant: str) -> Slot:
    async with places.turn(tenant, 1, limit_s=5) as place:
        return place


async def hold(places: SlotPool, tenant: str, until: asyncio.Event, seen: list[str] | None = None) -> Slot:
    async with places.turn(tenant, 1, limit_s=5) as place:
        if seen is not None:
            seen.append(tenant)
        await until.wait()
        return place


def test_tenants_return_to_their_own_place_and_take_the_longest_idle_otherwise() -> None:
    async def run() -> list[Slot]:
        two = places(2)
        return [await visit(two, tenant) for tenant in ("ann", "bob", "ann", "cid", "bob", "ann")]

    found = asyncio.run(run())
    # cid takes bob's place, idle for longest; bob then takes ann's; ann is left with cid's.
    assert found == [
        Slot(0, False),
        Slot(1, False),
        Slot(0, True),
        Slot(1, False),
        Slot(0, False),
        Slot(1, False),
    ]


def test_those_who_wait_come_in_order() -> None:
    async def run() -> list[str]:
        one, go, seen = places(), asyncio.Event(), list[str]()
        tasks = []
        for tenant in "abc":
            tasks.append(asyncio.create_task(hold(one, tenant, go, seen)))
            await asyncio.sleep(0)
        assert seen == ["a"]
        go.set()
        await asyncio.gather(*tasks)
        assert one.n_free == 1
        return seen

    assert asyncio.run(run()) == ["a", "b", "c"]


def test_queue_has_an_end() -> None:
    async def run() -> None:
        one, go = places(waiting=1), asyncio.Event()
        tasks = [asyncio.create_task(hold(one, "a", go)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="1 requests under way, 1 with 1 characters waiting; at most 1 with 100"):
            await visit(one, "b")
        go.set()
        await asyncio.gather(*tasks)
        await visit(one, "b")

    asyncio.run(run())


def test_own_requests_wait_for_as_long_as_it_takes() -> None:
    async def run() -> int:
        one, go = places(waiting=0), asyncio.Event()
        tasks = [asyncio.create_task(hold(one, "", go)) for _ in range(50)]
        await asyncio.sleep(0)
        go.set()
        return len(await asyncio.gather(*tasks))

    assert asyncio.run(run()) == 50


def test_waiting_has_an_end_and_leaves_nothing_behind() -> None:
    async def run() -> None:
        one, go = places(), asyncio.Event()
        holder = asyncio.create_task(hold(one, "a", go))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match=r"no place was free within 0\.01 s"):
            async with one.turn("b", 1, limit_s=0.01):
                pass
        leaver = asyncio.create_task(visit(one, "c"))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        go.set()
        await holder
        assert await visit(one, "a") == Slot(0, True)
        assert one.n_free == 1

    asyncio.run(run())


def test_place_called_for_one_who_leaves_goes_to_the_next() -> None:
    async def run() -> None:
        one, go = places(), asyncio.Event()
        holder = asyncio.create_task(hold(one, "a", go))
        await asyncio.sleep(0)
        leaver, last = asyncio.create_task(visit(one, "b")), asyncio.create_task(visit(one, "c"))
        await asyncio.sleep(0)
        go.set()
        await asyncio.sleep(0)  # the holder leaves: b is called in this very moment, and goes
        leaver.cancel()
        await asyncio.gather(holder, leaver, last, return_exceptions=True)
        assert last.result() == Slot(0, False)
        assert one.n_free == 1

    asyncio.run(run())


def test_event_loops_share_the_places() -> None:
    one, started, seen = places(), threading.Event(), list[Slot]()

    def other() -> None:
        async def run() -> None:
            async with one.turn("a", 1, limit_s=5):
                started.set()
                await asyncio.sleep(0.1)

        asyncio.run(run())

    thread = threading.Thread(target=other)
    thread.start()
    started.wait(5)
    seen.append(asyncio.run(visit(one, "b")))
    thread.join()
    assert seen == [Slot(0, False)]
    assert one.n_free == 1
