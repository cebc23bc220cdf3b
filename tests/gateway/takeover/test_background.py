"""Work after an answer goes on by itself, and what it raises reaches nobody but the log."""

from __future__ import annotations

import asyncio
import logging

from smallfirst.gateway.takeover.background import BackgroundTasks


def test_work_is_waited_for_and_failures_are_logged(caplog):
    done = []

    async def work(fails):
        await asyncio.sleep(0)
        if fails:
            raise OSError("disk full")
        done.append(True)

    async def run():
        tasks = BackgroundTasks()
        await tasks.wait()
        tasks.start(work(fails=True))
        tasks.start(work(fails=False))
        await tasks.wait()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert done == [True]
    assert ["disk full" in str(one.exc_info) for one in caplog.records] == [True]
