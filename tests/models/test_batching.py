"""Whoever waits is answered together, in order; a failure reaches everyone who waited and nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from smallfirst.errors import ModelError
from smallfirst.models.batching import BatchBudget, BatchWorker, ThroughputEstimate


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
        worker: BatchWorker[int, int] = BatchWorker(doubling, name="doubling", max_batch_size=3)
        first = asyncio.ensure_future(worker.submit(1))
        await asyncio.to_thread(doubling.began.wait, 10)
        others = [asyncio.ensure_future(worker.submit(n)) for n in range(2, 7)]
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
        worker: BatchWorker[int, int] = BatchWorker(Doubling(), name="doubling", max_batch_size=9)
        failed = await asyncio.gather(worker.submit(13), return_exceptions=True)
        after = await worker.submit(4)
        await worker.aclose()
        return list(failed), after

    failed, after = asyncio.run(scenario())
    assert isinstance(failed[0], ModelError)
    assert "doubling could not answer: unlucky" in str(failed[0])
    assert after == 8


def test_a_closed_worker_says_so_and_may_be_closed_twice() -> None:
    async def scenario() -> None:
        worker: BatchWorker[int, int] = BatchWorker(Doubling(), name="doubling", max_batch_size=9)
        await worker.aclose()
        await worker.aclose()
        with pytest.raises(ModelError, match="doubling is closed"):
            await worker.submit(1)

    asyncio.run(scenario())


def test_one_bad_question_does_not_fail_its_neighbours() -> None:
    async def scenario() -> tuple[list[object], list[list[int]]]:
        doubling = Doubling()
        doubling.gate.clear()
        worker: BatchWorker[int, int] = BatchWorker(doubling, name="doubling", max_batch_size=9)
        asked = [asyncio.ensure_future(worker.submit(1))]
        await asyncio.to_thread(doubling.began.wait, 10)
        asked += [asyncio.ensure_future(worker.submit(n)) for n in (2, 13, 3)]
        await asyncio.sleep(0)
        doubling.gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await worker.aclose()
        return list(found), doubling.batches

    found, batches = asyncio.run(scenario())
    assert [found[0], found[1], found[3]] == [2, 4, 6]
    assert isinstance(found[2], ModelError)
    assert batches == [[1], [2, 13, 3], [2], [13], [3]]


def test_a_pass_is_as_large_as_fits_its_planned_time() -> None:
    async def scenario() -> list[list[int]]:
        doubling = Doubling()
        worker: BatchWorker[int, int] = BatchWorker(
            doubling, name="doubling", max_batch_size=9, size=lambda n: n, budget=BatchBudget(seconds=0.0, full=10)
        )
        await worker.submit(1)  # from now on a rate is known
        doubling.gate.clear()
        doubling.began.clear()
        asked = [asyncio.ensure_future(worker.submit(1))]
        await asyncio.to_thread(doubling.began.wait, 10)
        asked += [asyncio.ensure_future(worker.submit(n)) for n in (4, 5, 2, 40, 3)]
        await asyncio.sleep(0)
        doubling.gate.set()
        await asyncio.gather(*asked)
        await worker.aclose()
        return doubling.batches[1:]

    # 4 + 5 fit into 10, 2 more do not; 40 is a pass of its own.
    assert asyncio.run(scenario()) == [[1], [4, 5], [2], [40], [3]]


def test_the_pace_follows_the_passes() -> None:
    pace = ThroughputEstimate(BatchBudget(seconds=2.0, full=3.0))
    assert pace.batch_size() == 3.0
    assert ThroughputEstimate(BatchBudget()).batch_size() == float("inf")
    pace.update(100, 1.0)
    assert pace.batch_size() == pytest.approx(200)
    pace.update(10, 1.0)
    assert pace.batch_size() == pytest.approx(2 * (87.5 + 10) / (0.875 + 1))
    for _ in range(200):
        pace.update(1, 10.0)
    assert pace.batch_size() == 3.0  # never less than what keeps the machine busy
