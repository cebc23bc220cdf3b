"""Compare what `smallfirst plan` foretells with what is seen under an open load of real HTTP requests.

    python -m benchmarks.capacity.plan FOLDER [ROUNDS]      # FOLDER: a promoted task with recorded large answers

Three sides, each at 30 % and at 70 % of its measured capacity, with Poisson arrivals:

- *known times*: a server that answers four requests at a time, each after a time drawn from a lognormal distribution
  (median 60 ms, sigma 0.3), and takes next to no processor time. It tests measuring and simulation.
- *one server* and *two servers* of the task, as `serve` runs it, on cores that they share with each other, with the
  clients, and with whatever else runs on this machine. The large model answers from recordings, at once.

Each round measures the rates as `plan --measure` does, then sends 15 s of each load, so many requests a second that they are that
part of the capacity measured a moment before, and compares what was seen with what those rates foretell: a machine that is faster or
slower in another round does not count as an error of the forecast. Medians and ranges are over rounds. A request's time counts
from the moment at which it was due; how late the client itself sent it is shown beside it. Writes benchmarks/results/plan.md.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from aiohttp import web

from benchmarks.paths import RESULTS
from smallfirst.capacity.measurement import LEVELS, free_port, measure, serving
from smallfirst.capacity.simulation import Rates, Scenario, Simulated, simulate
from smallfirst.data.dataset import Message
from smallfirst.models.remote.http import HttpSession
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file

RESULT = RESULTS / "plan.md"
LOADS, OPEN_S, LEVEL_S = (0.3, 0.7), 15.0, 3.0
SLOTS, MEDIAN_S, SIGMA = 4, 0.06, 0.3
NOTE = """\
Use is foretold as arrivals over the highest measured rate, at which many requests share a batch; a request takes more processor time at
low load, where batches are small. So processors look busier than the plan says long before the server is at its limit."""
TICKS = os.sysconf("SC_CLK_TCK")
Found = TypeVar("Found")


class Side(NamedTuple):
    """Something that is asked."""

    name: str
    urls: list[str]
    key: str
    model: str
    requests: Sequence[Sequence[Message]]


class Round(NamedTuple):
    """One load of one round, and its forecast."""

    scenario: Scenario
    told: Simulated
    ms: np.ndarray
    late_ms: float
    """95th percentile of the time between the moment when a request was due and that when the client sent it."""
    n_refused: int
    used: float
    """Processor time of the servers, of that at full load."""

    @property
    def p50(self) -> float:
        return float(np.percentile(self.ms, 50))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.ms, 95))


class Seen(NamedTuple):
    """A load of a side in all rounds."""

    side: str
    load: float
    rounds: list[Round]

    def over(self, figure: Callable[[Round], float], digits: int = 0) -> str:
        """Return median and range over the rounds."""
        values = sorted(figure(one) for one in self.rounds)
        return f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def busy_s() -> float:
    """Processor time of the servers that this process has started, in s."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(path.parent.name)] = [int(one) for one in path.read_text().rpartition(")")[2].split()[1:14]]
    own = {pid for pid, fields in found.items() if fields[0] == os.getpid()}  # each leads a session of its own
    return sum(fields[10] + fields[11] for fields in found.values() if fields[2] in own) / TICKS


async def open_load(side: Side, per_s: float, seed: int) -> tuple[list[float], list[float], int]:
    """Send Poisson arrivals, each to one server at random; return times and lateness in ms, and the number refused."""
    draw, found, late, refused = np.random.default_rng(seed), list[float](), list[float](), 0
    due = np.cumsum(draw.exponential(1 / per_s, round(per_s * OPEN_S)))
    chosen = draw.integers(0, len(side.urls), len(due))
    bodies = [
        json.dumps({"model": side.model, "messages": [message.model_dump() for message in one]}).encode()
        for one in side.requests
    ]
    sessions = [HttpSession(url, key=side.key, timeout_s=60, max_connections=1000) for url in side.urls]
    began = time.perf_counter()

    async def ask(i: int) -> None:
        nonlocal refused
        late.append((time.perf_counter() - began - due[i]) * 1000)
        answer = await sessions[chosen[i]].post("/v1/chat/completions", bodies[i % len(bodies)])
        await answer.read()
        refused += answer.status != 200
        found.append((time.perf_counter() - began - due[i]) * 1000)

    asked = []
    for i, at in enumerate(due):
        if (wait := at - (time.perf_counter() - began)) > 0:
            await asyncio.sleep(wait)
        asked.append(asyncio.create_task(ask(i)))
    await asyncio.gather(*asked)
    for session in sessions:
        await session.aclose()
    return found, late, refused


def compare(side: Side, n_rounds: int) -> list[Seen]:
    """Measure and load in turn, so many times."""

    def rates() -> Rates:
        found, _ = asyncio.run(measure(side.urls, side.model, side.requests, key=side.key, seconds=LEVEL_S))
        return found

    def used_in(run: Coroutine[Any, Any, Found]) -> tuple[Found, float]:
        began, before = time.perf_counter(), busy_s()
        return asyncio.run(run), (busy_s() - before) / (time.perf_counter() - began)

    rates()  # warms up
    seen = [Seen(side.name, load, []) for load in LOADS]
    for number in range(n_rounds):
        measured = rates()
        most = measure(side.urls, side.model, side.requests, key=side.key, seconds=2.0, levels=LEVELS[-1:])
        full = used_in(most)[1]
        for one in seen:
            per_s = one.load * measured.most_per_s * len(side.urls)
            (times, late, n), cores = used_in(open_load(side, per_s, number))
            scenario = Scenario(rate_per_s=per_s, rates=measured, replicas=len(side.urls), balance="random")
            told = simulate(scenario, n_requests=len(times), replications=32)
            late_ms = float(np.percentile(late, 95))
            one.rounds.append(Round(scenario, told, np.array(times), late_ms, n, cores / full if full else 0.0))
            print(side.name, one.load, one.rounds[-1].p95, "foretold", told.p95_ms, "late", late_ms, flush=True)
        print(measured.per_s, flush=True)
    return seen


def serve_known_times(port: int) -> None:
    """A server whose times are known."""
    draw, slots = np.random.default_rng(0), asyncio.Semaphore(SLOTS)

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        async with slots:
            await asyncio.sleep(MEDIAN_S * draw.lognormal(0, SIGMA))
        return web.json_response({"choices": []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


@contextmanager
def known_times() -> Iterator[list[str]]:
    """Run that server; yield its address."""
    port = free_port()
    server = multiprocessing.get_context("fork").Process(target=serve_known_times, args=(port,))
    server.start()
    time.sleep(2)
    try:
        yield [f"http://127.0.0.1:{port}"]
    finally:
        server.terminate()
        server.join()


def page(seen: Sequence[Seen], n_rounds: int, load: float) -> str:
    """The page."""
    doc = (__doc__ or "").splitlines()
    lines = [
        "# What `plan` foretells, and what is seen\n",
        f"`python -m benchmarks.capacity.plan FOLDER {n_rounds}` on the hosted Banking77 task (words first, Router over an encoder's domain check), "
        f"{time.strftime('%Y-%m-%d')}, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11; "
        f"load average {load:.0f} when it began, {os.getloadavg()[2]:.0f} in its last quarter of an hour: other work ran beside it.\n",
        *doc[4:],
        "",
        "| side | load | requests/s | n | refused | p50 seen (ms) | p50 foretold | p95 seen (ms) | p95 foretold "
        "| p95 foretold over seen | client late, p95 (ms) |",
        "|---|---:|---:|---:|---:|---|---|---|---|---|---|",
    ]
    for one in seen:
        n, refused = sum(len(of.ms) for of in one.rounds), sum(of.n_refused for of in one.rounds)
        figures = [
            one.over(lambda of: of.p50),
            one.over(lambda of: of.told.p50_ms.value),
            one.over(lambda of: of.p95),
            one.over(lambda of: of.told.p95_ms.value),
            one.over(lambda of: of.told.p95_ms.value / of.p95, 2),
            one.over(lambda of: of.late_ms),
        ]
        rate = one.over(lambda of: of.scenario.rate_per_s)
        lines.append(f"| {one.side} | {one.load:.0%} | {rate} | {n:,} | {refused} | {' | '.join(figures)} |")
    lines += [
        "",
        NOTE,
        "",
        "| side | load | use foretold | processor time seen, of that at full load |",
        "|---|---:|---:|---|",
    ]
    lines += [
        f"| {one.side} | {one.load:.0%} | {one.load:.2f} | {one.over(lambda of: of.used, 2)} |"
        for one in seen
        if one.side != "known times"
    ]
    return "\n".join([*lines, ""])


def main(folder: str, n_rounds: str = "3") -> None:
    """Run it and write the page."""
    n, load, seen = int(n_rounds), os.getloadavg()[2], list[Seen]()
    file = read_task_file(Path(folder))
    requests = [row.messages for row in Project.read(file, Progress(quiet=True)).rows.test.examples]
    with known_times() as urls:
        seen += compare(Side("known times", urls, "", "known", requests), n)
    for servers, name in ((1, "one server"), (2, "two servers")):
        with serving(file.folder, servers) as (urls, key):
            seen += compare(Side(name, urls, key, file.name, requests), n)
    RESULT.write_text(page(seen, n, load), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
