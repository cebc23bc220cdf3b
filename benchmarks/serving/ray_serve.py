"""What Ray Serve costs a request, and what clients see when a replica is killed.

    python -m benchmarks.serving.ray_serve [--rounds 3] [--requests 200]

The same service (a linear model on words, key, ledger row before each answer) as `smallfirst serve` and with 1 and 2
replicas, asked in turn by 1, 8 and 32 clients on the same cores. Then 8 clients ask while a replica is killed -9.
`--rounds 0` does the last alone and writes its part of the page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.paths import RESULTS
from benchmarks.serving.gateway_ours import KEY, fit, words
from benchmarks.serving.load import Answer, Client, closed_loop, post
from smallfirst.serving.app import serve
from smallfirst.serving.auth.keys import hash_key
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.replicas import Service, serve_replicas
from smallfirst.serving.settings import ServeSettings

PAGE = RESULTS / "ray_serve.md"
SIDES = {"one server": 0, "Ray Serve, 1 replica": 1, "Ray Serve, 2 replicas": 2}
CLIENTS = (1, 8, 32)
PORT = 8791
KILLED = "## A replica is killed"
ASKED_S, ANSWER_S = 40, 30
"""Seconds for which clients ask while a replica is killed · that they wait for an answer."""


def settings() -> ServeSettings:
    return ServeSettings(port=PORT, api_keys_sha256=(hash_key(KEY),))


def service_of(arguments: Sequence[str]) -> Service:
    """The model on words, whose folder is the first argument; its ledger lies there as well."""
    folder = Path(arguments[0])
    place = folder / "ledger.db"
    return Service({"words": words(folder / "model")}, Ledger(place), settings(), [], folder, place)


def request(n: int) -> bytes:
    content = f"thing{n % 8} number {n} of kind{n % 3} is broken again"
    body = {"model": "words", "messages": [{"role": "user", "content": content}]}
    return post("/v1/chat/completions", body, {"authorization": f"Bearer {KEY}"})


@contextmanager
def serving(n_replicas: int, folder: Path) -> Iterator[psutil.Process]:
    """The service in a process of its own, until it answers; its processes end with it."""
    command = [sys.executable, "-m", "benchmarks.serving.ray_serve", "serve", str(n_replicas), str(folder)]
    said = folder / "said.txt"  # no pipe: Ray's processes would hold it open, and stand still once it is full
    with said.open("w") as file:
        process = subprocess.Popen(command, stdout=file)
    try:
        while "smallfirst serves" not in said.read_text():
            if process.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        own = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=120)
        for each in own:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                each.kill()


def processor_s(process: psutil.Process) -> float:
    """Processor seconds so far, of all processes of a server."""
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


def measure(process: psutil.Process, n: int) -> dict[int, tuple[float, float, float, float]]:
    """By number of clients: p50 and p95 in ms, answers a second, processor ms an answer."""
    found = {}
    asyncio.run(closed_loop(PORT, [request(i) for i in range(50)], [request(0)], clients=4))
    for clients in CLIENTS:
        before_s = processor_s(process)
        load = asyncio.run(closed_loop(PORT, [request(i) for i in range(n)], [request(0)], clients=clients))
        assert {answer.status for answer in load.answers} == {200}
        ms = sorted(1000 * answer.seconds for answer in load.answers)
        spent_ms = 1000 * (processor_s(process) - before_s) / (n + 3 * clients)
        found[clients] = (statistics.median(ms), ms[int(0.95 * len(ms))], load.requests_per_s, spent_ms)
    return found


def replicas_of(process: psutil.Process) -> list[psutil.Process]:
    return [each for each in process.children(recursive=True) if "ServeReplica" in "".join(each.cmdline())]


async def kill_one(process: psutil.Process) -> tuple[list[tuple[float, Answer]], float, int]:
    """Ask with 8 clients and kill a replica after 3 s; return what came back when, and when all were there again."""
    replicas = replicas_of(process)
    began, answers = time.monotonic(), []

    async def work() -> None:
        client = Client(PORT)
        while time.monotonic() < began + ASKED_S:
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer, _, _ = await client.ask(request(len(answers)))
            except (TimeoutError, OSError):
                client.close()
                answer = Answer(0, b"", ANSWER_S)
                await asyncio.sleep(0.1)
            answers.append((time.monotonic() - began, answer))

    tasks = [asyncio.create_task(work()) for _ in range(8)]
    await asyncio.sleep(3)
    killed_s = time.monotonic() - began
    replicas[0].send_signal(signal.SIGKILL)
    await asyncio.gather(*tasks)
    return answers, killed_s, len(replicas_of(process))


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        n, folder = int(sys.argv[2]), Path(sys.argv[3])
        if n:
            serve_replicas([str(folder)], n, settings=settings(), service="benchmarks.serving.ray_serve:service_of")
        else:
            made = service_of([str(folder)])
            serve(made.models, ledger=made.ledger, settings=made.settings)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    rounds: list[Mapping[str, Mapping[int, tuple[float, float, float, float]]]] = []
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit(folder / "model")
        for _ in range(options.rounds):
            one = {}
            for side, n in SIDES.items():
                with serving(n, folder) as process:
                    one[side] = measure(process, options.requests)
                print(side, json.dumps(one[side]), file=sys.stderr, flush=True)
            rounds.append(one)
        with serving(2, folder) as process:
            answers, killed_s, n_alive = asyncio.run(kill_one(process))
        ledger = Ledger(folder / "ledger.db")
        known = {row.id for row in ledger.rows()}
        ledger.close()
    statuses = Counter(answer.status for _, answer in answers)
    codes = Counter(json.loads(a.body)["error"]["code"] for _, a in answers if a.status not in (0, 200))
    unrecorded = sum(json.loads(a.body)["id"] not in known for _, a in answers if a.status == 200)
    failed = [at for at, answer in answers if answer.status != 200]
    before, header = PAGE.read_text(encoding="utf-8").partition(KILLED)[0], platform.python_version()
    if rounds:
        before, header = page(options, rounds, load_before), ""
    lines = [
        KILLED,
        "",
        f"8 clients ask for {ASKED_S} s without a pause, with 2 replicas; after {killed_s:.0f} s one is killed -9."
        + (f" Measured alone (`--rounds 0`, 2026-11-27, Python {header}, load {load_before:.0f})." if header else ""),
        "",
        f"- {statuses[200]:,} answers of {len(answers):,}; others: {dict(codes) or 'none'}, {statuses[0]} without an answer.",
        f"- The failures came within {max(failed, default=killed_s) - killed_s:.1f} s of the kill; at most 8 requests were under way.",
        f"- Answers without a row in the ledger: {unrecorded}. Replicas at the end: {n_alive}.",
        "",
    ]
    PAGE.write_text(before + "\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def page(
    options: argparse.Namespace, rounds: Sequence[Mapping[str, Mapping[int, tuple[float, ...]]]], load: float
) -> str:
    """The table of the page."""
    lines = [
        "# What Ray Serve costs a request",
        "",
        f"`python -m benchmarks.serving.ray_serve --rounds {options.rounds} --requests {options.requests}`, 2026-11-27,"
        f" 2 shared cores (Zen 5), 24 GB, no GPU, Python {platform.python_version()}. Other programs wanted {load:.0f}"
        " processors at the start, so only the ratios of sides in one round mean something.",
        "",
        f"A linear model on words, key and ledger, the same on all sides; {options.requests} requests a cell, clients on"
        f" the same cores, medians of {options.rounds} rounds in turn (in brackets: smallest and largest).",
        "",
        "| clients | server | p50 ms | p95 ms | answers/s | processor ms an answer | p50, times one server |",
        "|---|---|---|---|---|---|---|",
    ]
    for clients in CLIENTS:
        for side in SIDES:
            cells = [[one[side][clients][k] for one in rounds] for k in range(4)]
            ratio = [one[side][clients][0] / one["one server"][clients][0] for one in rounds]
            shown = " | ".join(
                f"{statistics.median(cell):.1f} [{min(cell):.1f}, {max(cell):.1f}]" for cell in (*cells, ratio)
            )
            lines.append(f"| {clients} | {side} | {shown} |")
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    main()
