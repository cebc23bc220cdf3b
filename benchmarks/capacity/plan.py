"""Compare what `smallfirst plan` foretells with what is seen under an open load of real HTTP requests.

    python -m benchmarks.capacity.plan FOLDER [ROUNDS]      # FOLDER: a promoted task with recorded large answers

Three sides, each at 30 % and at 70 % of its measured capacity, with Poisson arrivals:

- *known times*: a server that answers four requests at a time, each after a time drawn from a lognormal distribution
  (median 60 ms, sigma 0.3), and takes next to no processor time. It tests measuring and simulation.
- *one server* and *two servers* of the task, as `serve` runs it, on cores that they share with each other, with the
  clients, and with whatever else runs on this machine. The large model answers from recordings, at once.

Each round measures the rates as `plan --measure` does, only shorter, then sends 8 s of each load. Since the machine is
shared, the forecast rests on all rounds together: times at a level are averaged, and the times seen are taken together. A request's
time counts from the moment at which it was due. Writes benchmarks/results/plan.md.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from aiohttp import web

from benchmarks.paths import RESULTS
from smallfirst.capacity.measurement import LEVELS, free_port, measure, serving
from smallfirst.capacity.simulation import Rates, Scenario, Simulated, quantiles, simulate
from smallfirst.data.dataset import Message
from smallfirst.models.remote.http import HttpSession
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file
from smallfirst.stats.intervals import Estimate, quantile_interval

RESULT = RESULTS / "plan.md"
LOADS, OPEN_S, LEVEL_S = (0.3, 0.7), 8.0, 0.5
SLOTS, MEDIAN_S, SIGMA = 4, 0.06, 0.3
NOTE = """\
Use is foretold as arrivals over the highest measured rate, at which many requests share a batch; a request takes more processor time at
low load, where batches are small. So processors look busier than the plan says long before the server is at its limit. A use above 1: the
machine became slower after the load had been chosen, so the queue grew for as long as the load lasted, and no p95 can be foretold."""
TICKS = os.sysconf("SC_CLK_TCK")


class Side(NamedTuple):
    """Something that is asked."""

    name: str
    urls: list[str]
    key: str
    model: str
    requests: Sequence[Sequence[Message]]


class Seen(NamedTuple):
    """One load of a side over all rounds, and its forecast."""

    side: str
    load: float
    scenario: Scenario
    ms: list[float]
    rounds_p95: list[float]
    n_refused: int
    used: float
    told: Simulated

    @property
    def p95(self) -> Estimate:
        return quantile_interval(self.ms, 0.95)


def busy_s() -> float:
    """Processor time of the servers that this process has started, in s."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(path.parent.name)] = [int(one) for one in path.read_text().rpartition(")")[2].split()[1:14]]
    own = {pid for pid, fields in found.items() if fields[0] == os.getpid()}  # each leads a session of its own
    return sum(fields[10] + fields[11] for fields in found.values() if fields[2] in own) / TICKS


async def open_load(side: Side, per_s: float, seed: int) -> tuple[list[float], int]:
    """Send Poisson arrivals, each to one server at random; return times in ms, and the number of refused ones."""
    draw, found, refused = np.random.default_rng(seed), list[float](), 0
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
    return found, refused


def compare(side: Side, n_rounds: int) -> list[Seen]:
    """Measure and load in turn, so many times."""

    def rates() -> Rates:
        found, _ = asyncio.run(measure(side.urls, side.model, side.requests, key=side.key, seconds=LEVEL_S))
        return found

    def used_in(run: object) -> tuple[object, float]:
        began, before = time.perf_counter(), busy_s()
        return asyncio.run(run), (busy_s() - before) / (time.perf_counter() - began)  # type: ignore[arg-type]

    rates()  # warms up
    per_s = {load: load * rates().most_per_s * len(side.urls) for load in LOADS}
    measured, full = list[Rates](), list[float]()
    ms: dict[float, list[list[float]]] = {load: [] for load in LOADS}
    used: dict[float, list[float]] = {load: [] for load in LOADS}
    refused = dict.fromkeys(LOADS, 0)
    for number in range(n_rounds):
        measured.append(rates())
        most = measure(side.urls, side.model, side.requests, key=side.key, seconds=2.0, levels=LEVELS[-1:])
        full.append(used_in(most)[1])
        for load in LOADS:
            (times, n), cores = used_in(open_load(side, per_s[load], number))  # type: ignore[misc]
            ms[load].append(times)
            used[load].append(cores)
            refused[load] += n
    pooled = {n: statistics.harmonic_mean([one.per_s[n] for one in measured]) for n in LEVELS}
    work = [of / one.per_s[1] for one in measured for of in one.work]
    both = Rates(per_s=pooled, work=quantiles([1000 * one for one in work]))
    seen = []
    for load in LOADS:
        scenario = Scenario(rate_per_s=per_s[load], rates=both, replicas=len(side.urls), balance="random")
        p95 = [float(np.percentile(times, 95)) for times in ms[load]]
        share = statistics.median(a / b if b else 0.0 for a, b in zip(used[load], full, strict=True))
        every = [one for times in ms[load] for one in times]
        seen.append(Seen(side.name, load, scenario, every, p95, refused[load], share, simulate(scenario)))
        one = seen[-1]
        print(side.name, load, per_s[load], one.p95, "foretold", one.told.p95_ms, both.per_s, flush=True)
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
        "| side | load | requests/s | n | refused | p50 seen, foretold (ms) | p95 seen (95 %), foretold (ms) "
        "| p95 of single rounds | foretold over seen |",
        "|---|---:|---:|---:|---:|---|---|---|---:|",
    ]
    for one in seen:
        p95, told = one.p95, one.told
        lines.append(
            f"| {one.side} | {one.load:.0%} | {one.scenario.rate_per_s:.1f} | {len(one.ms):,} | {one.n_refused} "
            f"| {statistics.median(one.ms):.0f}, {told.p50_ms.value:.0f} "
            f"| {p95.value:.0f} [{p95.low:.0f}, {p95.high:.0f}], {told.p95_ms.value:.0f} "
            f"| {min(one.rounds_p95):.0f} to {max(one.rounds_p95):.0f} | {told.p95_ms.value / p95.value:.2f} |"
        )
    lines += [
        "",
        NOTE,
        "",
        "| side | load | use foretold | processor time seen, of that at full load |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {one.side} | {one.load:.0%} | {one.scenario.utilisation:.2f} | {one.used:.2f} |"
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
