"""Start a server of speed.py, measure it once, and store the result."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.serving.load import Answer, Client, closed_loop, post
from benchmarks.serving.sides import Row, Side
from smallfirst.files import write_atomically

START_S = 600.0
STOP_S = 20.0


def say(text: str) -> None:
    """Nothing back; a line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Server(NamedTuple):
    """A side that answers."""

    side: Side
    port: int
    process: subprocess.Popen[bytes]
    start_s: float

    def request(self, row: Row) -> bytes:
        """The HTTP request for a row."""
        return post(self.side.path, self.side.body(row), self.side.headers)

    def label(self, answer: Answer) -> str | None:
        """The answered label; None for no answer, or one that means no label."""
        if answer.status != 200:
            return None
        return self.side.labels.get(self.side.said(json.loads(answer.body)))


@contextmanager
def started(side: Side, clients: int, folder: Path, row: Row) -> Iterator[Server]:
    """Yield the side's server once it answers `row`, then stop it. Exit with the end of its log if it does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "logs" / f"{side.name.replace(' ', '-').replace('/', '-')}.log"
    log.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            side.command(port, clients),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **side.environment},
            start_new_session=True,
        )
    server = Server(side, port, process, 0.0)
    try:
        why = asyncio.run(_until_ready(server, row))
        if why:
            sys.exit(f"{side.name} {why}:\n{log.read_text(errors='replace')[-3000:]}")
        yield server._replace(start_s=time.monotonic() - began)
    finally:
        _end(process)


async def _until_ready(server: Server, row: Row) -> str:
    """Return an empty string once it answers with a label, else the reason."""
    client, limit, seen = Client(server.port), time.monotonic() + START_S, b""
    while time.monotonic() < limit:
        if server.process.poll() is not None:
            return "ended"
        try:
            answer, _, _ = await asyncio.wait_for(client.ask(server.request(row)), START_S)
        except OSError:
            answer = Answer(0, b"", 0.0)
        if server.label(answer) is not None:
            client.close()
            return ""
        seen = answer.body or seen
        if answer.status == 200:
            return f"answers no label: {seen[:500]!r}"
        await asyncio.sleep(0.3)
    return f"did not answer in {START_S:.0f} s, last {seen[:500]!r}"


def signal_all(pid: int, number: int) -> None:
    """Send a signal (SIGSTOP, SIGCONT) to a process and all its children."""
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        process.send_signal(number)


@contextmanager
def awake(server: Server) -> Iterator[Server]:
    """A server that otherwise is stopped."""
    signal_all(server.process.pid, signal.SIGCONT)
    try:
        yield server
    finally:
        signal_all(server.process.pid, signal.SIGSTOP)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all its children."""
    if process.poll() is None:
        signal_all(process.pid, signal.SIGCONT)
    for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        try:
            os.killpg(process.pid, number)
            process.wait(wait_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


async def measure(server: Server, rows: Sequence[Row], others: Sequence[Row], *, clients: int) -> dict[str, Any]:
    """Return one cell: rate, latencies, correct answers, and the peak memory of all processes."""
    spare = [server.request(row) for row in others]
    load = await closed_loop(server.port, [server.request(row) for row in rows], spare, clients=clients)
    said = [server.label(answer) for answer in load.answers]
    return {
        "requests_per_s": load.requests_per_s,
        "ms": [round(1000 * answer.seconds, 3) for answer in load.answers],
        "said": said,
        "right": sum(label == row.label for label, row in zip(said, rows, strict=True)),
        "no_label": sum(label is None for label in said),
        "failed": sum(answer.status != 200 for answer in load.answers),
        "peak_mb": peak_mb(server.process.pid),
        "start_s": server.start_s,
    }


def peak_mb(pid: int) -> float:
    """Return the sum of the peak memory of a process and its children; shared memory is counted in each."""
    total = 0
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total / 1024


class Store:
    """What was measured, in one JSON file."""

    def __init__(self, folder: Path, plan: dict[str, Any], *, quick: bool) -> None:
        begin = "quick_" if quick else ""
        self.folder, self._path, self._choice_path = (
            folder,
            folder / f"{begin}speed.json",
            folder / f"{begin}choice.json",
        )
        self.found: dict[str, Any] = {"plan": plan, "cells": {}, "bound": {}}
        if self._path.exists():
            self.found = json.loads(self._path.read_text())
        if self.found["plan"] != plan:
            sys.exit(f"{self._path} was made with {self.found['plan']}, not with {plan}: move it away")
        self.choice: dict[str, Any] = {}
        if self._choice_path.exists():
            self.choice = json.loads(self._choice_path.read_text())

    def cell(self, side: str, clients: int, number: int) -> dict[str, Any] | None:
        """What is known, None if nothing."""
        found: dict[str, Any] | None = self.found["cells"].get(f"{side}|{clients}|{number}")
        return found

    def cells(self, side: str, clients: int) -> list[dict[str, Any]]:
        """All rounds of a side, in their order."""
        key = f"{side}|{clients}|"
        return [cell for name, cell in sorted(self.found["cells"].items()) if name.startswith(key)]

    def keep(self, side: str, clients: int, number: int, cell: dict[str, Any]) -> None:
        """Nothing back."""
        self.found["cells"][f"{side}|{clients}|{number}"] = cell
        self._write(self._path, self.found)

    def keep_bound(self, number: int, bound: dict[str, Any]) -> None:
        """Nothing back."""
        self.found["bound"][str(number)] = bound
        self._write(self._path, self.found)

    def keep_choice(self, key: str, value: Any) -> None:
        """Nothing back."""
        self.choice[key] = value
        self._write(self._choice_path, self.choice)

    def _write(self, path: Path, value: Any) -> None:
        write_atomically(path, json.dumps(value, indent=1).encode())
