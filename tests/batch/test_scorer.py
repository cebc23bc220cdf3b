"""What is set aside before a request is sent, and what becomes of it when the process that sent it dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

from smallfirst.batch.folder import BatchFolder, BatchIdentity
from smallfirst.batch.scorer import Budget


def test_what_a_dead_worker_had_set_aside_counts_as_paid_and_the_others_go_on(tmp_path: Path) -> None:
    identity = BatchIdentity(rows="r", rows_fingerprint="f", part_rows=2, model="m", model_fingerprint="f")
    folder = BatchFolder(tmp_path / "out", identity)
    folder._db.executemany("INSERT INTO requests (number, hash) VALUES (?, ?)", [(n, bytes([n])) for n in range(5)])

    async def ask() -> Budget:
        budget = Budget(folder.database, 4.0, 0.0)
        assert [await budget.reserve(number, 1.0) for number in (0, 1, 2, 3)] == [1.0] * 4
        waits = asyncio.create_task(budget.reserve(4, 1.0))
        await budget.release(3, 0.25)
        await budget.begin(0, 1)  # the worker that had sent these is dead
        await budget.release(2, 0.25)
        assert await waits == 1.0
        await budget.release(4, 1.0)
        assert await budget.reserve(0, 1.0) is None
        return budget

    budget = asyncio.run(ask())
    assert budget.stopped.startswith("stopped at the cap of $4: the next answer may cost $1.0000")
    assert budget.cap.spent_usd == 3.5
    assert folder.spent_usd == 2.0
