"""Whoever waits is answered together, in order; a failure reaches everyone who waited and nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from smallfirst.errors import ModelError
from smallfirst.models.worker import Worker


class Doubling:
    """Doubles numbers; waits for `gate`; fails on 13."""

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.began.set()
        assert self.gate.wait(10)
        if 13 in numbers:
            raise ValueError("unlucky")
        return [2 * n for n in numbers]


def test_what_waits_is_answered_together_up_to_the_most() -> None:
    async def scenario() -> tuple[list[int], list[list[int]]]:
        doubling = Doubling()
        doubling.gate.clear()
        worker: Worker[int, int] = Worker(doubling, name="doubling", most_at_once=3)
        first = asyncio.ensure_future(worker.ask(1))
        await asyncio.to_thread(doubling.began.wait, 10)
        others = [asyncio.ensure_future(worker.ask(n)) for n in range(2, 7)]
        await asyncio.sleep(0)  # all five stand in line
        doubling.gate.set()
        found = [await first, *(await asyncio.gather(*others))]
        await worker.aclose()
        return found, doubling.batches

    found, batches = asyncio.run(scenario())
    assert found == [2, 4, 6, 8, 10, 12]
    assert batches == [[1], [2, 3, 4], [5, 6]]


def test_a_failure_is_told_to_those_who_waited_and_the_next_is_answered() -> None:
    async def scenario() -> tuple[list[object], int]:
        worker: Worker[int, int] = Worker(Doubling(), name="doubling", most_at_once=9)
        failed = await asyncio.gather(worker.ask(13), return_exceptions=True)
        after = await worker.ask(4)
        await worker.aclose()
        return list(failed), after

    failed, after = asyncio.run(scenario())
    assert isinstance(failed[0], ModelError)
    assert "doubling could not answer: unlucky" in str(failed[0])
    assert after == 8


def test_a_closed_worker_says_so_and_may_be_closed_twice() -> None:
    async def scenario() -> None:
        worker: Worker[int, int] = Worker(Doubling(), name="doubling", most_at_once=9)
        await worker.aclose()
        await worker.aclose()
        with pytest.raises(ModelError, match="doubling is closed"):
            await worker.ask(1)

    asyncio.run(scenario())
