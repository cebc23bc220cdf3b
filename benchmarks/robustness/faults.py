"""Measure lost requests under faults: killed processes, a full disk, crowds, slow clients, and ten minutes of load.

    python -m benchmarks.robustness.faults MODEL_FOLDER [--gguf FILE] [--only NAME …] [--soak 600]     # about 15 minutes

MODEL_FOLDER is a fine-tuned model as training writes it. A request is *lost* if its client has neither an answer nor an
error with a status when it should, or if an answer that the client has is not in the ledger. The full disk is a small
file system of its own (tmpfs), which needs the right to mount one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paths import RESULTS

RESULT = RESULTS / "faults.md"
KEY = "sf-faults"
PORT, UPSTREAM_PORT = 8441, 8442
DEADLINE_S = 60.0
REFUSED, LEFT = -1, -2
TEXTS = ("my card has not arrived yet", "why was I charged twice", "how do I change my pin", "the transfer is pending")


class Told(NamedTuple):
    """What one client was told."""

    status: int
    """0 without an answer, REFUSED if the connection was refused."""
    body: str
    """What came of the body."""
    seconds: float
    """How long it took."""


def chat(model: str, text: str, **more: Any) -> bytes:
    """The body of a chat."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **more}).encode()


async def ask(body: bytes, *, path: str = "/v1/chat/completions", leave_after_s: float | None = None) -> Told:
    """Send one request on its own connection and return the answer; give up after some seconds."""
    began, status, got = time.perf_counter(), 0, b""
    try:
        async with asyncio.timeout(leave_after_s or DEADLINE_S + 15):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            except ConnectionRefusedError:
                return Told(REFUSED, "", 0.0)
            try:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                first = await reader.readuntil(b"\r\n\r\n")
                status = int(first.split(b" ", 2)[1])
                while piece := await reader.read(65536):
                    got += piece
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        pass
    return Told(status, got.decode(errors="replace"), time.perf_counter() - began)


class Server:
    """A server process and its ledger."""

    def __init__(self, folder: Path, gguf: Path | None, work: Path) -> None:
        self.ledger = work / "ledger.db"
        command = [
            sys.executable,
            "-m",
            "benchmarks.robustness.faults_server",
            str(PORT),
            KEY,
            str(self.ledger),
            str(folder),
        ]
        command += [f"http://127.0.0.1:{UPSTREAM_PORT}/v1", *([str(gguf)] if gguf else [])]
        self.log = work / "server.log"
        self.process = subprocess.Popen(command, stdout=self.log.open("ab"), stderr=subprocess.STDOUT)

    async def ready(self) -> Server:
        """Itself once the small model answers."""
        for _ in range(600):
            if (await ask(chat("small", TEXTS[0]))).status == 200:
                return self
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            await asyncio.sleep(0.2)
        raise SystemExit("the server did not start")

    def stop(self) -> int:
        """Its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=90)

    def answers(self) -> int:
        """Answered requests in the ledger."""
        with sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True) as reader:
            return int(reader.execute("SELECT count(*) FROM answers WHERE status = 200").fetchone()[0])

    def children(self) -> list[int]:
        """Processes that the server has started."""
        listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in listing.stdout.split()]

    def weighs(self) -> tuple[float, int, int]:
        """Return resident memory in MB, open files and threads."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
        return int(status["VmRSS"].split()[0]) / 1024, len(list((proc / "fd").iterdir())), int(status["Threads"])


def start_upstream() -> subprocess.Popen[bytes]:
    """The upstream's process."""
    return subprocess.Popen([sys.executable, "-m", "benchmarks.robustness.faults_upstream", str(UPSTREAM_PORT)])


async def crowd(n: int, work: Callable[[int], Awaitable[Told]], until: Callable[[], bool]) -> list[Told]:
    """Return the statuses that `n` clients got, each asking repeatedly."""
    told: list[Told] = []

    async def client(number: int) -> None:
        while not until():
            told.append(await work(number))
            if told[-1].status != 200:
                await asyncio.sleep(0.1)

    await asyncio.gather(*(client(number) for number in range(n)))
    return told


def counted(told: list[Told]) -> str:
    """`200: 31, 503: 2`."""
    words = {0: "nothing", REFUSED: "no connection", LEFT: "left early"}
    seen = sorted(Counter(t.status for t in told).items())
    return ", ".join(f"{words.get(status, status)}: {n}" for status, n in seen)


def unrecorded(server: Server, told: list[Told], before: int) -> int:
    """Return the answers that clients have and the ledger lacks."""
    return max(0, sum(t.status == 200 for t in told) - (server.answers() - before))


async def engine_killed(server: Server, _: Path) -> list[str]:
    """Kill the llama.cpp child while four clients wait for it."""
    assert (await ask(chat("engine", "Say yes.", max_tokens=4))).status == 200
    before, end, killed_at, back_at = server.answers(), time.perf_counter() + 25, 0.0, 0.0

    async def one(_: int) -> Told:
        nonlocal back_at
        told = await ask(chat("engine", "Say yes.", max_tokens=8))
        if told.status == 200 and killed_at and not back_at and time.perf_counter() - told.seconds > killed_at:
            back_at = time.perf_counter()
        return told

    async def kill() -> None:
        nonlocal killed_at
        await asyncio.sleep(5)
        killed_at = time.perf_counter()
        for pid in server.children():
            os.kill(pid, signal.SIGKILL)

    told, _none = await asyncio.gather(crowd(4, one, lambda: time.perf_counter() > end), kill())
    small = await ask(chat("small", TEXTS[0]))
    return [
        f"told: {counted(told)}; lost: {sum(t.status == 0 for t in told) + unrecorded(server, told, before)}",
        f"answers again after {back_at - killed_at:.1f} s (the file is loaded anew); the small model: {small.status}",
    ]


async def upstream_killed(server: Server, _: Path) -> list[str]:
    """Kill the upstream in the middle of eight streams and restart it."""
    upstream = start_upstream()
    await asyncio.sleep(1)
    streams = [asyncio.create_task(ask(chat("upstream", "x", stream=True))) for _ in range(8)]
    await asyncio.sleep(2)
    upstream.kill()
    killed_at = time.perf_counter()
    told = await asyncio.gather(*streams)
    ended_s = time.perf_counter() - killed_at
    errors = sum('"error"' in t.body and "[DONE]" not in t.body for t in told)
    down = await ask(chat("upstream", "x"))
    upstream = start_upstream()
    started_at, status = time.perf_counter(), 0
    while status != 200 and time.perf_counter() - started_at < 60:
        await asyncio.sleep(0.1)
        status = (await ask(chat("upstream", "x"))).status
    recovered_s = time.perf_counter() - started_at
    upstream.kill()
    return [
        f"8 streams in the middle: {errors} ended with an error event, all within {ended_s:.2f} s; lost: {8 - errors}",
        f"while it is down: {down.status} after {down.seconds:.2f} s; answers {recovered_s:.1f} s after it is back",
    ]


async def thousand(server: Server, _: Path) -> list[str]:
    """Send requests of 1,000 clients at once, which retry when told to."""
    before, waits = server.answers(), []

    async def patient(number: int) -> Told:
        began = time.perf_counter()
        while True:
            told = await ask(chat("small", TEXTS[number % 4]))
            if told.status != 503:
                waits.append(time.perf_counter() - began)
                return told
            await asyncio.sleep(2 * random.uniform(0.9, 1.5))

    told = list(await asyncio.gather(*(patient(number) for number in range(1000))))
    waits.sort()
    lost = sum(t.status == 0 for t in told) + unrecorded(server, told, before)
    return [
        f"told in the end: {counted(told)}; lost: {lost}",
        f"waited, turned away and come again included: p50 {waits[500]:.1f} s, p99 {waits[990]:.1f} s; "
        f"{server.weighs()[0]:.0f} MB afterwards",
    ]


async def slow_loris(server: Server, _: Path) -> list[str]:
    """Open 300 connections that send a byte of their head every second, or nothing, while one client works."""
    began, cut = time.perf_counter(), []

    async def drip(number: int) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            end = asyncio.create_task(reader.read())
            for letter in "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: " + "a" * 200:
                if number % 2:
                    writer.write(letter.encode())
                done, _ = await asyncio.wait({end}, timeout=1)
                if done:
                    break
            writer.close()
        except OSError:
            pass
        cut.append(time.perf_counter() - began)

    dripping = asyncio.gather(*(drip(number) for number in range(300)))
    good = await crowd(1, lambda _: ask(chat("small", TEXTS[0])), lambda: time.perf_counter() - began > 8)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(dripping, timeout=90)
    seconds = statistics.median(t.seconds for t in good) * 1000
    return [
        f"the good client meanwhile: {counted(good)}, median {seconds:.0f} ms",
        f"{len(cut)} of 300 cut off, the last after {max(cut, default=0):.0f} s; open files then: {server.weighs()[1]}",
    ]


async def terminated(server: Server, _: Path) -> list[str]:
    """SIGTERM while 32 clients ask."""
    before, told_at = server.answers(), 0.0

    async def term() -> None:
        nonlocal told_at
        await asyncio.sleep(4)
        told_at = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)

    told, _none = await asyncio.gather(
        crowd(
            32, lambda n: ask(chat("small", TEXTS[n % 4])), lambda: bool(told_at) and time.perf_counter() > told_at + 2
        ),
        term(),
    )
    code = server.process.wait(timeout=60)
    half = sum(t.status == 200 and '"choices"' not in t.body for t in told)
    return [
        f"told: {counted(told)} (no connection: after the end); half answers: {half}; "
        f"lost: {sum(t.status == 0 for t in told) + unrecorded(server, told, before)}",
        f"exit code {code}",
    ]


async def soak(server: Server, work: Path, seconds: float = 600) -> list[str]:
    """Mix for minutes: answers, streams, scores, bad bodies, clients that disconnect."""
    upstream, end, weights = start_upstream(), time.perf_counter() + seconds, []
    before = server.answers()
    began = time.perf_counter()

    async def anything(number: int) -> Told:
        what = random.random()
        if what < 0.55:
            return await ask(chat("small", random.choice(TEXTS) + str(random.random()), logprobs=what < 0.1))
        if what < 0.7:
            return await ask(chat("small", TEXTS[0], stream=True))
        if what < 0.8:
            return await ask(json.dumps({"model": "small", "input": list(TEXTS)}).encode(), path="/v1/score")
        if what < 0.88:
            return await ask(chat("upstream", "x"))
        if what < 0.94:
            return await ask(chat("small", "x", temperature=9))
        await ask(chat("upstream", "x", stream=True), leave_after_s=0.2)
        return Told(LEFT, "", 0)

    async def weigh() -> None:
        while time.perf_counter() < end:
            weights.append((time.perf_counter() - began, *server.weighs()))
            await asyncio.sleep(5)

    told, _none = await asyncio.gather(crowd(8, anything, lambda: time.perf_counter() > end), weigh())
    upstream.kill()
    stayed = [t for t in told if t.status != LEFT]
    later = [w for w in weights if w[0] > seconds / 5]
    slope = statistics.linear_regression([w[0] / 60 for w in later], [w[1] for w in later]).slope
    lost, left = sum(t.status == 0 for t in stayed) + unrecorded(server, stayed, before), len(told) - len(stayed)
    return [
        f"{len(told)} requests in {seconds / 60:.0f} minutes: {counted(stayed)}, left early: {left}; lost: {lost}",
        f"memory {later[0][1]:.0f} → {later[-1][1]:.0f} MB, {slope:+.2f} MB a minute after the first fifth; open files "
        f"{min(w[2] for w in later)} to {max(w[2] for w in later)}; threads {min(w[3] for w in later)} to "
        f"{max(w[3] for w in later)}",
    ]


async def full_disk(folder: Path, work: Path) -> list[str]:
    """Fill the ledger's disk while eight clients ask, and free it again."""
    disk = work / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    server = Server(folder, None, disk)
    try:
        await server.ready()
        before, end = server.answers(), time.perf_counter() + 12
        freed_at = back_at = 0.0
        filler = disk / "filler"

        async def one(number: int) -> Told:
            nonlocal back_at
            told = await ask(chat("small", TEXTS[number % 4]))
            if told.status == 200 and freed_at and not back_at:
                back_at = time.perf_counter()
            return told

        async def fill() -> None:
            nonlocal freed_at
            await asyncio.sleep(2)
            stop = time.perf_counter() + 5
            with filler.open("wb", buffering=0) as file:
                while time.perf_counter() < stop:  # space that the ledger frees is taken at once
                    with contextlib.suppress(OSError):
                        file.write(b"x" * 4096)
                        continue
                    await asyncio.sleep(0.05)
            filler.unlink(missing_ok=True)
            freed_at = time.perf_counter()

        told, _none = await asyncio.gather(crowd(8, one, lambda: time.perf_counter() > end), fill())
        lost = sum(t.status == 0 for t in told) + unrecorded(server, told, before)
        return [f"told: {counted(told)}; lost: {lost}", f"answers again {back_at - freed_at:.2f} s after there is room"]
    finally:
        server.stop()
        subprocess.run(["umount", "-l", str(disk)], check=False)


SCENES: dict[str, Callable[..., Awaitable[list[str]]]] = {
    "engine killed": engine_killed,
    "upstream killed": upstream_killed,
    "1,000 clients": thousand,
    "slow clients": slow_loris,
    "soak": soak,
    "SIGTERM under load": terminated,
}


async def run(options: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    """The findings of each scene, in order."""
    found: dict[str, list[str]] = {}
    wanted = options.only or ["full disk", *SCENES]
    if "full disk" in wanted:
        found["full disk"] = await full_disk(options.folder, work)
        print("full disk", *found["full disk"], sep="\n  ", flush=True)
    scenes = [name for name in SCENES if name in wanted and (name != "engine killed" or options.gguf)]
    if not scenes:
        return found
    server = await Server(options.folder, options.gguf, work).ready()
    try:
        for name in scenes:
            more = {"seconds": options.soak} if name == "soak" else {}
            found[name] = await SCENES[name](server, work, **more)
            print(name, *found[name], sep="\n  ", flush=True)
    finally:
        if server.process.poll() is None:
            server.stop()
    return found


def page(found: dict[str, list[str]]) -> str:
    """The page of results."""
    lines = ["# Faults", ""]
    lines += [
        f"`python -m benchmarks.robustness.faults MODEL_FOLDER --gguf FILE`, {date.today()}, {platform.machine()},"
    ]
    lines += [
        f"{os.cpu_count()} cores, Python {platform.python_version()}. The small model is a fine-tuned SmolLM2-135M,"
    ]
    lines += ["the engine Qwen2.5-Coder-1.5B-Instruct through llama.cpp. `nothing`: the client got no status line.", ""]
    for name, said in found.items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", *(f"- {line}" for line in said), ""]
    return "\n".join(lines)


def main() -> None:
    """Run the scenes and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--soak", type=float, default=600)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="smallfirst-faults-"))
    try:
        found = asyncio.run(run(options, work))
    finally:
        print((work / "server.log").read_text()[-1500:] if (work / "server.log").exists() else "")
        shutil.rmtree(work, ignore_errors=True)
    if not options.only:
        RESULT.write_text(page(found))


if __name__ == "__main__":
    main()
