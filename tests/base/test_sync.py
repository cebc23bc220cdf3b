"""Asynchronous code called from synchronous code, with and without a running event loop."""

import asyncio
import threading
from pathlib import Path

import pytest

from smallfirst.base.paths import state_folder, state_of
from smallfirst.base.sync import outside_event_loop, run_in_thread, run_sync


async def _loop_of_this_call() -> asyncio.AbstractEventLoop:
    await asyncio.sleep(0)
    return asyncio.get_running_loop()


async def _fail() -> None:
    raise KeyError("lost")


def test_every_call_runs_on_the_same_loop_which_is_not_the_caller_s() -> None:
    async def inside_a_notebook() -> asyncio.AbstractEventLoop:
        assert asyncio.get_running_loop() is not run_sync(_loop_of_this_call())
        return run_sync(_loop_of_this_call())

    assert run_sync(_loop_of_this_call()) is asyncio.run(inside_a_notebook())


def test_errors_of_the_call_are_raised_to_its_caller() -> None:
    with pytest.raises(KeyError, match="lost"):
        run_sync(_fail())
    with pytest.raises(KeyError, match="lost"):
        run_in_thread(lambda: asyncio.run(_fail()))


def test_work_with_a_loop_of_its_own_runs_beside_a_running_loop_and_else_in_the_same_thread() -> None:
    def work() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        return asyncio.run(_loop_of_this_call()), threading.current_thread()

    async def inside_a_notebook() -> threading.Thread:
        return outside_event_loop(work)[1]

    assert asyncio.run(inside_a_notebook()) is not threading.current_thread()
    assert outside_event_loop(work)[1] is threading.current_thread()


def test_a_thread_knows_the_state_folder_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALLFIRST_HOME")
    with state_of(tmp_path):
        assert run_in_thread(state_folder) == tmp_path / ".smallfirst"
