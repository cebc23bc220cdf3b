"""Waiting items are computed together, in order; a failure reaches its own item and no other."""

import asyncio
import os
import threading
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.errors import ModelError
from smallfirst.models.batching import BatchBudget, BatchWorker, usable_cores


class Doubling:
    """Doubles numbers; waits for `gate`; fails on 13."""

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.began.set()
        assert self.gate.wait(60)
        if 13 in numbers:
            raise ValueError("unlucky")
        return [2 * n for n in numbers]


def work_of(doubling: Doubling, **settings: Any) -> aclosing[BatchWorker[int, int]]:
    return aclosing(BatchWorker(doubling, name="doubling", **({"max_batch_size": 9} | settings)))


async def queue_behind(doubling: Doubling, worker: BatchWorker[int, int], *numbers: int) -> list[object]:
    """Results of these items, the first of which is being computed while the others arrive."""
    doubling.gate.clear()
    doubling.began.clear()
    tasks = [asyncio.ensure_future(worker.submit(numbers[0]))]
    await asyncio.to_thread(doubling.began.wait, 60)
    tasks += [asyncio.ensure_future(worker.submit(n)) for n in numbers[1:]]
    await asyncio.sleep(0)
    doubling.gate.set()
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_waiting_items_are_computed_together_up_to_the_limit() -> None:
    doubling = Doubling()
    async with work_of(doubling, max_batch_size=3) as worker:
        assert await queue_behind(doubling, worker, 1, 2, 3, 4, 5, 6) == [2, 4, 6, 8, 10, 12]
    assert doubling.batches == [[1], [2, 3, 4], [5, 6]]


async def test_one_bad_item_fails_alone_and_the_worker_lives_on() -> None:
    doubling = Doubling()
    async with work_of(doubling) as worker:
        found = await queue_behind(doubling, worker, 1, 2, 13, 3)
        assert [found[0], found[1], found[3], await worker.submit(4)] == [2, 4, 6, 8]
    assert isinstance(found[2], ModelError)
    assert "doubling could not answer: unlucky" in str(found[2])
    assert doubling.batches == [[1], [2, 13, 3], [2], [13], [3], [4]]


async def test_a_closed_worker_refuses_and_may_be_closed_twice() -> None:
    async with work_of(Doubling()) as worker:
        await worker.aclose()
        with pytest.raises(ModelError, match="doubling is closed"):
            await worker.submit(1)


async def test_a_batch_is_as_large_as_its_budget_allows() -> None:
    doubling = Doubling()
    async with work_of(doubling, size=lambda n: n, budget=BatchBudget(seconds=0.0, full=10)) as worker:
        await worker.submit(1)  # from now on the throughput is known
        await queue_behind(doubling, worker, 1, 4, 5, 2, 40, 3)
    # 4 + 5 fit into 10, 2 more do not; 40 is a batch of its own.
    assert doubling.batches[1:] == [[1], [4, 5], [2], [40], [3]]


def test_cores_are_physical_ones_and_at_most_what_the_container_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    assert usable_cores(tmp_path) == 4  # nothing is known
    for number, siblings in ((0, "0,4"), (1, "1,5"), (2, "2,6"), (5, "1,5")):
        place = tmp_path / f"devices/system/cpu/cpu{number}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{siblings}\n")
    assert usable_cores(tmp_path) == 3
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    for granted, wanted in (("max 100000", 3), ("150000 100000", 2), ("20000 100000", 1), ("800000 100000", 3)):
        (tmp_path / "fs/cgroup/cpu.max").write_text(granted)
        assert usable_cores(tmp_path) == wanted
