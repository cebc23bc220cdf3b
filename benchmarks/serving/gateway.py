"""Measure the latency that a gateway adds in front of an upstream that answers at once: ours beside the LiteLLM proxy.

    python -m benchmarks.serving.gateway [--litellm ENVIRONMENT/bin/litellm] [--repeats 3] [--seconds 8]

On one machine, in one run, each in a separate process on loopback: an instant upstream (gateway_upstream.py), the
clients (gateway_load.py), and in turn each gateway in front of that upstream. Ours checks a key, parses and checks the
body, asks a Router with a certificate, and writes a row of the ledger before each answer: once with a rule that sends
the request on (`rule`), once with a drafting stage on words in front, whose draft is not confident enough (`words`).
LiteLLM checks its master key and forwards; its ledger, which needs PostgreSQL, is off. Each has one worker process.

«Added» is the gateway's latency minus that of the upstream alone in the same repetition, under the same load. Medians
over the repetitions, whose order alternates; all processes share the cores. Writes benchmarks/results/gateway.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.datasets import RESULTS
from benchmarks.serving.gateway_ours import KEY, MODEL

RESULT = RESULTS / "gateway.md"
LOADS: dict[str, dict[str, float]] = {
    "1 client": {"clients": 1},
    "32 clients": {"clients": 32},
    "50/s": {"rate": 50},
    "200/s": {"rate": 200},
    "500/s": {"rate": 500},
}
LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/instant, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{num_retries: 0, request_timeout: 60}}
"""
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}


class Running(NamedTuple):
    """A gateway or the upstream."""

    port: int
    process: subprocess.Popen[str]

    def memory_mb(self) -> float:
        """Resident memory now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def busy_s(self) -> float:
        """Processor time so far."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


class Seen(NamedTuple):
    """What one load found at one gateway."""

    n: int
    failed: int
    rate: float
    p50_ms: float
    p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    busy_ms: float
    """Return the gateway's processor time for each answer."""
    memory_mb: float


def start(command: list[str], log: Path, **environment: str) -> subprocess.Popen[str]:
    with log.open("w", encoding="utf-8") as errors:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def gateway(side: str, upstream: int, folder: Path, litellm: str) -> Iterator[Running]:
    """Yield a fresh gateway that has answered its first requests."""
    port = free_port()
    if side == "LiteLLM":
        config = folder / "litellm.yaml"
        config.write_text(LITELLM.format(model=MODEL, upstream=upstream, key=KEY), encoding="utf-8")
        command = [litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        process = start(command, folder / "litellm.log", **QUIET)
    else:
        command = [sys.executable, "-m", "benchmarks.serving.gateway_ours", str(upstream), str(folder), side, str(port)]
        process = start(command, folder / f"{side}.log")
    with stopped(process):
        wait_for(port, process, folder)
        load(port, {"clients": 1}, 1)
        load(port, {"rate": 50}, 2)
        yield Running(port, process)


def load(port: int, kind: dict[str, float], seconds: float, **more: Any) -> dict[str, Any]:
    order = {"port": port, "key": KEY, "model": MODEL, "seconds": seconds, **kind, **more}
    command = [sys.executable, "-m", "benchmarks.serving.gateway_load", json.dumps(order)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def measure(side: str, upstream: int, folder: Path, litellm: str, seconds: float) -> dict[str, Seen]:
    """Run one repetition of one side under all loads. Restart a gateway that failed requests for the next load."""
    found: dict[str, Seen] = {}
    waiting = dict(LOADS)
    while waiting:
        with gateway(side, upstream, folder, litellm) as running:
            while waiting:
                name, kind = next(iter(waiting.items()))
                del waiting[name]
                alone, busy_s = load(upstream, kind, seconds), running.busy_s()
                got = load(running.port, kind, seconds)
                found[name] = seen = seen_of(got, alone, running.busy_s() - busy_s, running.memory_mb())
                print(side, name, seen, flush=True)
                if seen.failed:
                    break
    return found


def seen_of(got: dict[str, Any], alone: dict[str, Any], busy_s: float, memory_mb: float) -> Seen:
    p50, p99 = (got[key] if got[key] is not None else float("nan") for key in ("p50_ms", "p99_ms"))
    added = p50 - alone["p50_ms"], p99 - alone["p99_ms"]
    busy_ms = 1000 * busy_s / max(1, got["n"] - got["failed"])
    return Seen(got["n"], got["failed"], got["rate"], p50, p99, *added, busy_ms, memory_mb)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[str], folder: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            said = "\n".join(log.read_text(encoding="utf-8")[-2000:] for log in folder.glob("*.log"))
            raise SystemExit(f"{said}\n{process.args} ended with {process.returncode}")
        with socket.socket() as line:
            if line.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"nobody listens on port {port}")


def rows(found: dict[str, list[dict[str, Seen]]]) -> Iterator[str]:
    """Lines of the table, load by load."""
    for name in LOADS:
        for side, repetitions in found.items():
            seen = Seen(*(statistics.median(column) for column in zip(*(r[name] for r in repetitions), strict=True)))
            failed, n = (sum(getattr(r[name], key) for r in repetitions) for key in ("failed", "n"))
            title = side if side == "LiteLLM" else f"ours, {side}"
            yield (
                f"| {name} | {title} | {seen.rate:,.0f} | {failed} of {n:,} | {seen.p50_ms:.2f} | {seen.p99_ms:.2f} | "
                f"**{seen.added_p50_ms:.2f}** | {seen.added_p99_ms:.2f} | {seen.busy_ms:.2f} | {seen.memory_mb:.0f} |"
            )


def page(found: dict[str, list[dict[str, Seen]]], arguments: argparse.Namespace, version: str, busy: str) -> str:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return (
        "# What a gateway adds\n\n"
        f"`python -m benchmarks.serving.gateway --repeats {arguments.repeats} --seconds {arguments.seconds:g}`, "
        f"{date.today().isoformat()}, {machine}{version}.\n\n"
        "An upstream that answers at once, on loopback; the clients, the upstream and the gateway share the cores. "
        "«Added» is latency beyond that of the upstream alone under the same load in the same repetition. An open loop "
        "(`/s`) times each request from the moment it was due; a failure is another status than 200, or no answer "
        f"within 10 s. Medians of {arguments.repeats} repetitions of {arguments.seconds:g} s each, failures summed. "
        f"{busy}\n\n"
        "Ours: key, Router with certificate, ledger row before each answer. `rule`: a policy sends the request on; "
        "`words`: a stage on words drafts first. LiteLLM: master key, no database.\n\n"
        "| load | gateway | answered/s | failed | p50 ms | p99 ms | added p50 | added p99 | CPU ms an answer | MB |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows(found)) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--litellm", default="", help="the proxy's command, in its own environment")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--ways", default="rule,words", help="which of ours")
    arguments = parser.parse_args()
    sides = [*arguments.ways.split(","), *(["LiteLLM"] if arguments.litellm else [])]
    found: dict[str, list[dict[str, Seen]]] = {side: [] for side in sides}
    before = waiting()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "benchmarks.serving.gateway_ours", "fit", str(folder)], check=True)
        upstream = start([sys.executable, "-m", "benchmarks.serving.gateway_upstream"], folder / "upstream.log")
        with stopped(upstream):
            assert upstream.stdout is not None
            port = int(upstream.stdout.readline())
            for repetition in range(arguments.repeats):
                for side in sides if repetition % 2 == 0 else reversed(sides):
                    found[side].append(measure(side, port, folder, arguments.litellm, arguments.seconds))
    busy = f"Runnable processes of others meanwhile: {before:.1f} on average before, {waiting():.1f} after."
    RESULT.write_text(page(found, arguments, _version(arguments.litellm), busy), encoding="utf-8")


def waiting() -> float:
    """Return the mean number of runnable processes over a few seconds in which the benchmark is idle."""
    seen = []
    for _ in range(30):
        seen.append(int(Path("/proc/loadavg").read_text(encoding="utf-8").split()[3].partition("/")[0]) - 1)
        time.sleep(0.1)
    return statistics.fmean(seen)


def _version(litellm: str) -> str:
    if not litellm:
        return ""
    asked = "import importlib.metadata; print(importlib.metadata.version('litellm'))"
    said = subprocess.run(
        [str(Path(litellm).with_name("python")), "-c", asked], capture_output=True, text=True, check=True
    )
    return f", LiteLLM {said.stdout.strip()}"


if __name__ == "__main__":
    main()
