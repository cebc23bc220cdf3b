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

from smallfirst.errors import Unavailable
from smallfirst.models.servers.child_process import ChildProcess, child_environment
from smallfirst.models.servers.supervisor import RestartPolicy, Supervisor

POLICY = RestartPolicy(
    initial_backoff_s=100,
    max_backoff_s=1e6,
    max_request_wait_s=150,
    stable_after_s=1e6,
    probe_interval_s=0.01,
    probe_timeout_s=0.3,
)
QUIET = "import sys; print('ready', flush=True); sys.stdin.read()"


def program(code: str = QUIET) -> ChildProcess:
    process = ChildProcess([sys.executable, "-c", code], child_environment())
    if not process.wait_until(lambda: "ready" in process.output_tail(), 60):
        process.stop()
        raise Unavailable(f"did not start: {process.output_tail()}")
    return process


class Time:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.now_s += seconds


def supervisor(
    start: Callable[[], ChildProcess] = program,
    probe: Callable[[ChildProcess, float], None] = lambda process, timeout_s: None,
    time: Time | None = None,
) -> Supervisor[ChildProcess]:
    time = time or Time()
    return Supervisor("engine", start, probe, POLICY, clock=lambda: time.now_s, sleep=time.sleep)


def test_child_has_its_own_session_and_ends_with_its_input() -> None:
    process = program()
    assert process.is_alive
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


def test_program_that_fails_shows_its_last_output() -> None:
    with pytest.raises(Unavailable, match=r"did not start: .* / ValueError: no such file / exit code 1"):
        program("raise ValueError('no such file')")


def test_program_that_is_not_ready_in_time_says_so() -> None:
    process = ChildProcess([sys.executable, "-c", QUIET], child_environment())
    assert not process.wait_until(lambda: False, 0)
    assert process.output_tail().endswith("not ready within 0 s")
    process.stop()


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
async def test_crashed_process_is_restarted_after_a_wait() -> None:
    time = Time()
    one = supervisor(time=time)
    first = await one.process()
    os.kill(first.pid, signal.SIGKILL)
    assert first.ended.wait(60)
    assert str(one.crash_error(first)).startswith(
        "engine: the engine ended while it answered: ready / ended by signal 9"
    )
    time.now_s = first.ended_s + 30
    second = await one.process()
    assert time.waits_s == [pytest.approx(70)]
    assert second.pid != first.pid
    assert one.crash_error(second) is None
    one.stop()


@in_loop
async def test_crash_loop_is_refused_with_the_last_output() -> None:
    time, n_starts = Time(), 0

    def broken() -> ChildProcess:
        nonlocal n_starts
        n_starts += 1
        return program("raise MemoryError('no memory left')")

    one = supervisor(broken, time=time)
    for _ in range(2):
        with pytest.raises(Unavailable, match="did not start"):
            await one.process()
    assert time.waits_s == [100]
    with pytest.raises(Unavailable, match=r"failed 2 times in a row and restarts in 200 s; .*no memory left"):
        await one.process()
    assert (time.waits_s, n_starts) == ([100], 2)


@in_loop
async def test_unresponsive_process_is_killed_only_while_requests_are_in_flight() -> None:
    probes: list[float] = []

    def probe(process: ChildProcess, timeout_s: float) -> None:
        probes.append(timeout_s)
        raise TimeoutError(f"nothing within {timeout_s} s")

    one = supervisor(probe=probe)
    process = await one.process()
    assert not process.ended.wait(10 * POLICY.probe_interval_s)
    assert probes == []
    with one.request() as n_in_flight:
        assert n_in_flight == 1
        assert await asyncio.to_thread(process.ended.wait, 60)
    assert "killed: no answer to a probe within 0.3 s" in process.output_tail()
    with pytest.raises(Unavailable, match=r"does not answer: nothing within 0\.3 s"):
        one.check_health(process)
    one.stop()


def test_a_restart_that_takes_long_refuses_requests_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()
    loaded.set()

    def start() -> ChildProcess:
        loaded.wait(60)
        return program()

    time = Time()
    one = supervisor(start, time=time)
    first = asyncio.run(one.process())
    monkeypatch.setattr("smallfirst.models.servers.supervisor.RESTART_TIMEOUT_S", 0.0)
    loaded.clear()
    first.kill("gone")
    assert first.ended.wait(60)
    while first.is_alive:  # its output closes a moment before it ends
        threading.Event().wait(0.01)
    time.now_s = first.ended_s
    with pytest.raises(Unavailable, match="the engine crashed and is starting again"):
        asyncio.run(one.process())
    loaded.set()
    monkeypatch.setattr("smallfirst.models.servers.supervisor.RESTART_TIMEOUT_S", 60.0)
    assert asyncio.run(one.process()).is_alive
    one.stop()
