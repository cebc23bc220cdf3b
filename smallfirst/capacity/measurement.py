"""What one machine can do: answers a second by the number of requests under way, from a short real load over HTTP.

The load is a closed loop: so many clients, each of which sends its next request when it has its answer. By Little's law
the rate is the number of clients over the mean time of an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import platform
import secrets
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from smallfirst.capacity.simulation import Rates, quantiles
from smallfirst.data.dataset import Message
from smallfirst.errors import ConfigError, ModelError
from smallfirst.evaluation.results import Evaluation
from smallfirst.models.remote.http import HttpSession
from smallfirst.models.servers import orphan_guard
from smallfirst.models.servers.child_process import ChildProcess, child_environment
from smallfirst.progress import ProgressCallback, no_progress
from smallfirst.records import Record

LEVELS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of requests under way."""
WARM_UP = 0.2
"""First part of the seconds of each level that does not count."""
READY_TIMEOUT_S = 300.0


class Measurement(Record):
    """Rates of one machine."""

    machine: str = ""
    """Its name under `prices.machines`; empty: the one under `prices.machine`."""
    model: str
    """Served name that was asked."""
    large: bool = False
    """True for a large model of one's own."""
    processes: int = 1
    """Servers on the machine, loaded at the same time; the rates are those of one of them."""
    rates: Rates
    n: int
    source: str
    """How it was measured, for the reader."""

    def __str__(self) -> str:
        rate, alone_ms = self.rates.most_per_s * self.processes, 1000 / self.rates.by_number[0]
        servers = f"{self.processes} server{'s' * (self.processes > 1)} of {self.model}"
        return f"{self.machine or 'machine'}: {rate:,.3g}/s by {servers}, {alone_ms:.3g} ms alone; {self.source}"


def from_evaluation(evaluation: Evaluation) -> Measurement | None:
    """Return what an evaluation shows: a request alone, and all rows at once; None where it has no such times."""
    if not evaluation.probes_ms or not evaluation.requests_per_s:
        return None
    alone, at_once = evaluation.probes_ms, min(len(evaluation.rows), LEVELS[-1])
    per_s = {1: 1000 / statistics.mean(alone), at_once: evaluation.requests_per_s}
    return Measurement(
        model=evaluation.model,
        rates=Rates(per_s=per_s, work=quantiles(alone)),
        n=len(evaluation.rows) + len(alone),
        source="the last run's evaluation, without HTTP, routing and ledger",
    )


async def measure(
    urls: Sequence[str],
    model: str,
    requests: Sequence[Sequence[Message]],
    *,
    key: str = "",
    seconds: float = 3.0,
    levels: Sequence[int] = LEVELS,
    progress: ProgressCallback = no_progress,
) -> tuple[Rates, int]:
    """Return the rates of one of the servers at `urls` (`http://HOST:PORT`), all loaded at once, and the answers.

    Each level takes about so many seconds. Raise ModelError if a request is not answered.
    """
    turns = [{"model": model, "messages": [message.model_dump() for message in one]} for one in requests]
    bodies = itertools.cycle([json.dumps(body).encode() for body in turns])
    sessions = [HttpSession(url, key=key, timeout_s=120, max_connections=max(levels)) for url in urls]
    per_s: dict[int, float] = {}
    alone, n = [0.0], 0
    try:
        for done, level in enumerate(levels):
            progress(done, len(levels), f"{level} at once")
            times = await _load(sessions, bodies, level, seconds)
            per_s[level], n = level / statistics.mean(times), n + len(times)
            alone = times if level == levels[0] else alone
    finally:
        for session in sessions:
            await session.aclose()
    return Rates(per_s=per_s, work=quantiles([1000 * took for took in alone])), n


async def _load(sessions: Sequence[HttpSession], bodies: Iterator[bytes], level: int, seconds: float) -> list[float]:
    """Return the times in s of answers with so many clients at each server."""
    began = time.perf_counter()
    found: list[list[tuple[float, float]]] = []

    async def ask_on(session: HttpSession) -> None:
        own: list[tuple[float, float]] = []
        found.append(own)
        while not own or time.perf_counter() < began + seconds:
            at = time.perf_counter()
            answer = await session.post("/v1/chat/completions", next(bodies))
            body = await answer.read()
            if answer.status != 200:
                raise ModelError(
                    f"the server answered {answer.status} under load: {body[:300].decode(errors='replace')}"
                )
            own.append((at, time.perf_counter() - at))

    await asyncio.gather(*(ask_on(session) for session, _ in itertools.product(sessions, range(level))))
    counted = [took for own in found for at, took in own if at >= began + WARM_UP * seconds]
    return counted or [took for own in found for _, took in own]


@contextmanager
def serving(task_yaml: Path, processes: int = 1) -> Iterator[tuple[list[str], str]]:
    """Serve a task by so many servers on loopback over one new ledger; yield their addresses and a key.

    The large model answers from recordings. Raise ConfigError if a server does not start.
    """
    key = secrets.token_urlsafe(24)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        ports = [free_port() for _ in range(processes)]
        options = ["--replay-large", "--follow-s", "0", "--ledger", str(Path(folder) / "ledger.db")]
        options += ["--api-key-sha256", hashlib.sha256(key.encode()).hexdigest()]
        guard = [sys.executable, "-I", orphan_guard.__file__]  # servers end with this process, even if it is killed
        command = [*guard, sys.executable, "-m", "smallfirst.cli.main", "serve", str(task_yaml), *options]
        for port in ports:
            server = ChildProcess([*command, "--port", str(port)], child_environment())
            stack.callback(server.stop)
            if not server.wait_until(lambda port=port: _is_ready(port), READY_TIMEOUT_S):  # type: ignore[misc]
                raise ConfigError(
                    f"the server to measure did not start: {server.output_tail()}",
                    hint="smallfirst serve task.yaml --replay-large   shows why",
                )
        yield [f"http://127.0.0.1:{port}" for port in ports], key


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def this_machine() -> str:
    """Return processor, cores and date, for the reader of a measurement."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}"
