"""A small real program is started, crashes, hangs, and is restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable

import pytest
from fixtures.event_loop import in_loop

from smallfirst.base.errors import Unavailable
from smallfirst.models.servers import supervisor as supervisors
from smallfirst.models.servers.supervisor import ChildProcess, Supervisor, child_environment

QUIET = "import sys; print('ready', flush=True); sys.stdin.read()"


def program(code: str = QUIET) -> ChildProcess:
    process = ChildProcess([sys.executable, "-c", code], child_environment())
    if not process.wait_until(lambda: "ready" in process.output_tail(), 60):
        process.stop()
        raise Unavailable(f"did not start: {process.output_tail()}")
    return process


class Clock:
    """A clock that only a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def supervisor(
    start: Callable[[], ChildProcess] = program,
    probe: Callable[[ChildProcess, float], None] = lambda process, timeout_s: None,
    clock: Callable[[], float] | None = None,
) -> Supervisor[ChildProcess]:
    return Supervisor("engine", start, probe, clock=clock or Clock())


def kill(process: ChildProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert process.ended.wait(60)
    while process.is_alive:  # its output closes a moment before it ends
        threading.Event().wait(0.01)


def test_child_has_its_own_session_and_ends_with_its_input() -> None:
    process = program()
    assert os.getsid(process.pid) == process.pid  # Ctrl-C does not reach it
    process.stop()
    process.stop()
    assert not process.is_alive


def test_killed_child_takes_all_that_it_started_along() -> None:
    process = program(
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    process.kill("killed: in the way")
    assert process.ended.wait(60)  # its output is closed, so the grandchild is gone too
    assert "killed: in the way / ended by signal 9" in process.output_tail()
    process.stop()


def test_secrets_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "Db_Password", "HARMLESS"):
        monkeypatch.setenv(name, "x")
    found = child_environment(ENGINE_KEY="own")
    assert {"OPENAI_API_KEY", "HF_TOKEN", "Db_Password"} & found.keys() == set()
    assert (found["HARMLESS"], found["ENGINE_KEY"]) == ("x", "own")


def test_concurrent_requests_start_one_process_and_one_may_leave() -> None:
    one = supervisor()

    async def run() -> list[ChildProcess]:
        tasks = [asyncio.create_task(one.process()) for _ in range(5)]
        await asyncio.sleep(0)
        tasks.pop(0).cancel()
        return await asyncio.gather(*tasks)

    found = asyncio.run(run())
    assert len({process.pid for process in found}) == 1
    one.stop()
    assert not found[0].is_alive


@in_loop
async def test_stopping_while_it_starts_ends_it() -> None:
    started: list[ChildProcess] = []
    starting, go = threading.Event(), threading.Event()

    def slow() -> ChildProcess:
        starting.set()
        go.wait()
        started.append(program())
        return started[-1]

    one = supervisor(slow)
    task = asyncio.create_task(one.process())
    await asyncio.to_thread(starting.wait)
    one.stop()
    go.set()
    with pytest.raises(Unavailable, match="closed while the engine was starting"):
        await task
    assert not started[0].is_alive


@in_loop
async def test_crashed_process_is_restarted_at_once_and_refused_for_a_while_if_it_crashes_again() -> None:
    clock = Clock()
    one = supervisor(clock=clock)
    first = await one.process()
    kill(first)
    assert str(one.crash_error(first)).startswith(
        "engine: the engine ended while it answered: ready / ended by signal 9"
    )
    second = await one.process()
    assert second.pid != first.pid
    assert one.crash_error(second) is None
    kill(second)
    with pytest.raises(Unavailable, match=r"crashed again and restarts in 1 s; .*ended by signal 9"):
        await one.process()
    clock.now_s = 2.0
    assert (await one.process()).is_alive
    one.stop()


@in_loop
async def test_program_that_never_starts_is_refused_with_its_last_output() -> None:
    n_starts = 0

    def broken() -> ChildProcess:
        nonlocal n_starts
        n_starts += 1
        return program("raise MemoryError('no memory left')")

    one = supervisor(broken)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"did not start: .* / MemoryError: no memory left / exit code 1"):
            await one.process()
    with pytest.raises(Unavailable, match=r"crashed again .*no memory left"):
        await one.process()
    assert n_starts == 2


@in_loop
async def test_unresponsive_process_is_killed_only_while_requests_are_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisors, "PROBE_INTERVAL_S", 0.01)
    probes: list[float] = []

    def probe(process: ChildProcess, timeout_s: float) -> None:
        probes.append(timeout_s)
        raise TimeoutError("nothing came")

    one = supervisor(probe=probe)
    process = await one.process()
    assert not process.ended.wait(0.1)
    assert probes == []
    with one.request() as n_in_flight:
        assert n_in_flight == 1
        assert await asyncio.to_thread(process.ended.wait, 60)
    assert "killed: no answer to a probe within 60 s" in process.output_tail()
    with pytest.raises(Unavailable, match="does not answer: nothing came"):
        one.check_health(process)
    one.stop()
