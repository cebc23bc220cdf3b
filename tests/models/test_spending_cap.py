"""What is paid and reserved never exceeds the cap."""

from __future__ import annotations

import asyncio

from smallfirst.models.spending_cap import SpendingCap


def test_a_request_waits_for_what_another_may_release() -> None:
    async def work() -> tuple[float | None, float | None, float]:
        cap = SpendingCap(1.0, 0.3)
        first = await cap.reserve(0.5)
        waiting = asyncio.create_task(cap.reserve(0.5))
        await asyncio.sleep(0)
        assert not waiting.done()
        await cap.release(0.5, 0.1)
        return first, await waiting, cap.spent_usd

    assert asyncio.run(work()) == (0.5, 0.5, 0.4)


def test_an_answer_above_its_worst_case_raises_that_of_all_later_ones() -> None:
    async def work() -> float | None:
        cap = SpendingCap(1.0)
        assert await cap.reserve(0.2) == 0.2
        await cap.release(0.2, 0.4)
        assert await cap.reserve(0.2) == 0.4
        return await SpendingCap(0.1).reserve(0.2)

    assert asyncio.run(work()) is None
