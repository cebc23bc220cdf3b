"""A small real program is started, dies, hangs, and is started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smallfirst.errors import Unavailable
from smallfirst.models.servers.child_process import ChildProcess, child_environment
from smallfirst.models.servers.supervisor import RestartPolicy, Supervisor

SOON = RestartPolicy(
    initial_backoff_s=0.2,
    max_backoff_s=60,
    stable_after_s=60,
    max_request_wait_s=0.3,
    probe_interval_s=0.05,
    probe_timeout_s=0.3,
)
QUIET = "import sys; print('ready 7', flush=True); sys.stdin.read()"


def program(text: str = QUIET) -> ChildProcess:
    child = ChildProcess([sys.executable, "-c", text], child_environment(), announces="ready ")
    if not child.wait_until(lambda: child.announced is not None, 30):
        child.stop()
        raise Unavailable(f"did not start: {child.output_tail()}")
    return child


def supervisor(
    start: Callable[[], ChildProcess] = program, probe: Callable[[ChildProcess, float], None] = lambda child, s: None
) -> Supervisor[ChildProcess]:
    return Supervisor("engine", start, probe, SOON)


def test_child_says_where_it_listens_and_ends_when_its_input_does() -> None:
    child = program()
    assert child.announced == "7"
    assert child.is_alive
    assert os.getsid(child.pid) == child.pid  # Ctrl-C does not reach it
    child.stop()
    child.stop()
    assert not child.is_alive


def test_child_that_will_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    text = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('ready', other.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = program(text)
    child.kill("killed: it was in the way")
    assert child.ended.wait(5)  # its output is closed: neither is there any more
    assert "killed: it was in the way / it was ended by signal 9" in child.output_tail()
    child.stop()


def test_secrets_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "Db_Password", "HARMLESS"):
        monkeypatch.setenv(name, "x")
    told = child_environment(ENGINE_KEY="own")
    assert {"OPENAI_API_KEY", "HF_TOKEN", "Db_Password"} & told.keys() == set()
    assert (told["HARMLESS"], told["ENGINE_KEY"]) == ("x", "own")


def test_program_that_fails_shows_its_last_words() -> None:
    with pytest.raises(Unavailable, match=r"did not start: .* / ValueError: no such file / it ended with exit code 1"):
        program("raise ValueError('no such file')")


def test_many_ask_and_one_is_started() -> None:
    one = supervisor()

    async def run() -> list[ChildProcess]:
        return await asyncio.gather(*(one.child() for _ in range(5)))

    found = asyncio.run(run())
    assert len({child.pid for child in found}) == 1
    one.stop()
    assert not found[0].is_alive


def test_leaving_while_it_starts_harms_nobody() -> None:
    one = supervisor()

    async def run() -> ChildProcess:
        leaver, stayer = asyncio.create_task(one.child()), asyncio.create_task(one.child())
        await asyncio.sleep(0.01)
        leaver.cancel()
        return await stayer

    assert asyncio.run(run()).is_alive
    one.stop()


def test_closing_while_it_starts_ends_it() -> None:
    started: list[ChildProcess] = []

    def slow() -> ChildProcess:
        time.sleep(0.3)
        started.append(program())
        return started[-1]

    async def run() -> None:
        one = supervisor(slow)
        task = asyncio.create_task(one.child())
        await asyncio.sleep(0.05)
        one.stop()
        with pytest.raises(Unavailable, match="closed while the engine was starting"):
            await task
        assert not started[0].is_alive

    asyncio.run(run())


def test_dead_child_is_started_again_after_a_wait() -> None:
    one = supervisor()

    async def run() -> None:
        first = await one.child()
        os.kill(first.pid, signal.SIGKILL)
        first.ended.wait(5)
        assert str(one.died(first)).startswith("engine: the engine died while it answered: it was ended by signal 9")
        second = await one.child()
        assert second.started_s - first.ended_s >= 0.2
        assert one.died(second) is None
        one.stop()

    asyncio.run(run())


def test_crash_loop_is_told_with_the_last_words() -> None:
    n_starts = 0

    def broken() -> ChildProcess:
        nonlocal n_starts
        n_starts += 1
        return program("raise MemoryError('no memory left')")

    async def run() -> None:
        one = supervisor(broken)
        for _ in range(2):  # 0.2 s are waited for
            with pytest.raises(Unavailable, match="did not start"):
                await one.child()
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match=r"failed 2 times in a row and is started again in 0 s; .*no memory left"):
            await one.child()  # 0.4 s are not
        assert time.monotonic() - began_s < 0.3
        assert n_starts == 2
        one.stop()

    asyncio.run(run())


def test_silent_child_is_killed_only_while_requests_are_under_way() -> None:
    def probe(child: ChildProcess, limit_s: float) -> None:
        raise TimeoutError(f"nothing within {limit_s} s")

    async def run() -> None:
        one = supervisor(probe=probe)
        child = await one.child()
        await asyncio.sleep(0.3)
        assert child.is_alive
        with one.at_work() as n_in_flight:
            assert n_in_flight == 1
            assert await asyncio.to_thread(child.ended.wait, 10)
        assert r"killed: it gave no sign of life for 0.3 s" in child.output_tail()
        with pytest.raises(Unavailable, match=r"gives no sign of life: nothing within 0\.3 s"):
            one.check_health(child)
        one.stop()

    asyncio.run(run())
