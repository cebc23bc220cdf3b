"""Measure what our server and our proxy add to an upstream that answers at once, beside LiteLLM's proxy and Portkey's.

    python -m benchmarks.serving.gateway serve [--litellm ENVIRONMENT/bin/litellm] [--repeats 3] [--seconds 8]
    python -m benchmarks.serving.gateway proxy [--litellm …] [--portkey FOLDER]

On one machine, in one run, each in a process of its own on loopback: an instant upstream (gateway_upstream.py), the
clients (gateway_load.py), and in turn each gateway in front of that upstream, with one worker process.

`serve`: ours checks a key, parses and checks the body, asks a Router with a certificate, and writes a row of the ledger
before each answer: once with a rule that sends the request on (`rule`), once with a drafting stage on words in front, whose
draft is not confident enough (`words`). LiteLLM checks its master key and forwards; its ledger, which needs PostgreSQL, is off.
`proxy`: ours passes on (`plain`), or hands every exchange to the process that stores it as well (`capture`). Portkey is told
the upstream by headers. Each gateway's process is bound to one core (`taskset`), clients and upstream to the other.

«Added» is the gateway's latency minus that of the upstream alone in the same repetition, under the same load. Medians
over the repetitions, whose order alternates. Writes benchmarks/results/gateway.md or proxy.md.
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

import psutil

from benchmarks.datasets import RESULTS, processor
from benchmarks.processes import SMALLFIRST, printed, processor_s, running
from benchmarks.serving.gateway_ours import KEY, MODEL

LOADS: dict[str, dict[str, dict[str, Any]]] = {
    "serve": {"1 client": {"clients": 1}, "32 clients": {"clients": 32}}
    | {f"{rate}/s": {"rate": rate} for rate in (50, 200, 500)},
    "proxy": {"1 client": {"clients": 1}, "64 clients": {"clients": 64}, "200/s": {"rate": 200}}
    | {"16 streams": {"clients": 16, "stream": True}},
}
OURS = {"serve": ("rule", "words"), "proxy": ("plain", "capture")}
FIRST = ", first event"
LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/instant, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{num_retries: 0, request_timeout: 60}}
"""
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
SETTINGS = """\
upstreams: {{instant: {{base_url: "http://127.0.0.1:{upstream}/v1"}}}}
prices: {{tokens: {{instant: {{input_usd_per_mtok: 1, output_usd_per_mtok: 4}}}}}}
"""


class Running(NamedTuple):
    """A gateway."""

    port: int
    pid: int


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
    """The gateway's processor time for each answer."""
    memory_mb: float


def command_of(
    side: str, port: int, upstream: int, folder: Path, peers: argparse.Namespace
) -> tuple[list[str], dict[str, str]]:
    if side == "LiteLLM":
        config = folder / "litellm.yaml"
        config.write_text(LITELLM.format(model=MODEL, upstream=upstream, key=KEY), encoding="utf-8")
        at = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        return [peers.litellm, "--config", str(config), *at], QUIET
    if side == "Portkey":
        entry = next(Path(peers.portkey).glob("node_modules/@portkey-ai/gateway/build/start-server.js"))
        return ["node", str(entry), f"--port={port}", "--headless"], {"NODE_ENV": "production"}
    if side in OURS["serve"]:
        ours = ["-m", "benchmarks.serving.gateway_ours", str(upstream), str(folder), side, str(port)]
        return [sys.executable, *ours], {}
    kept, home = "capture: {}\n" if side == "capture" else "", folder / side
    home.mkdir(exist_ok=True)
    (home / "gateway.yaml").write_text(SETTINGS.format(upstream=upstream) + kept, encoding="utf-8")
    return [*SMALLFIRST, "proxy", str(home), "--port", str(port)], {"SMALLFIRST_HOME": str(home / "state")}


def headers_of(side: str, upstream: int) -> dict[str, str]:
    address = f"http://127.0.0.1:{upstream}/v1"
    return {"x-portkey-provider": "openai", "x-portkey-custom-host": address} if side == "Portkey" else {}


@contextmanager
def gateway(side: str, upstream: int, folder: Path, given: argparse.Namespace) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command, environment = command_of(side, port, upstream, folder, given)
    bound = ["taskset", "-c", "0"] if given.question == "proxy" else []
    environment |= {"OMP_NUM_THREADS": "1"}
    with running([*bound, *command], log=folder / f"{side}.log", **environment) as process:
        wait_for(port, process, folder)
        load(port, {"clients": 4}, 2, headers=headers_of(side, upstream))
        yield Running(port, process.pid)


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


def load(port: int, kind: dict[str, Any], seconds: float, **more: Any) -> dict[str, Any]:
    order = {"port": port, "key": KEY, "model": MODEL, "seconds": seconds, **kind, **more}
    found: dict[str, Any] = json.loads(
        printed([sys.executable, "-m", "benchmarks.serving.gateway_load", json.dumps(order)])
    )
    return found


def measure(side: str, upstream: int, folder: Path, given: argparse.Namespace) -> dict[str, Seen]:
    """Run one repetition of one side under all loads. Restart a gateway that failed requests for the next load."""
    found: dict[str, Seen] = {}
    waiting = dict(LOADS[given.question])
    while waiting:
        with gateway(side, upstream, folder, given) as one:
            while waiting:
                name, kind = next(iter(waiting.items()))
                del waiting[name]
                alone, busy_s = load(upstream, kind, given.seconds), processor_s(one.pid)
                got = load(one.port, kind, given.seconds, headers=headers_of(side, upstream))
                cost = processor_s(one.pid) - busy_s, psutil.Process(one.pid).memory_info().rss / 2**20
                found[name] = seen_of(got, alone, *cost)
                print(side, name, found[name], flush=True)
                if "first_p50_ms" in got:
                    firsts = ({**one, **{p: one[f"first_{p}"] for p in ("p50_ms", "p99_ms")}} for one in (got, alone))
                    found[name + FIRST] = seen_of(*firsts, *cost)
                if found[name].failed:
                    break
    return found


def seen_of(got: dict[str, Any], alone: dict[str, Any], busy_s: float, memory_mb: float) -> Seen:
    p50, p99 = (got[key] if got[key] is not None else float("nan") for key in ("p50_ms", "p99_ms"))
    added = p50 - alone["p50_ms"], p99 - alone["p99_ms"]
    busy_ms = 1000 * busy_s / max(1, got["n"] - got["failed"])
    return Seen(got["n"], got["failed"], got["rate"], p50, p99, *added, busy_ms, memory_mb)


def rows(found: dict[str, list[dict[str, Seen]]], loads: dict[str, Any]) -> Iterator[str]:
    for name in (*loads, *(name + FIRST for name in loads)):
        for side, repetitions in found.items():
            if name not in repetitions[0]:
                continue
            columns = list(zip(*(one[name] for one in repetitions), strict=True))
            seen = Seen(*(statistics.median(column) for column in columns))
            n, failed = sum(columns[0]), sum(columns[1])
            added = columns[Seen._fields.index("added_p50_ms")]
            yield (
                f"| {name} | {side} | {seen.rate:,.0f} | {failed} of {n:,} | {seen.p50_ms:.2f} | {seen.p99_ms:.2f} | "
                f"**{seen.added_p50_ms:.2f}** ({min(added):.2f} to {max(added):.2f}) | {seen.added_p99_ms:.2f} | "
                f"{seen.busy_ms:.2f} | {seen.memory_mb:.0f} |"
            )


def page(found: dict[str, list[dict[str, Seen]]], given: argparse.Namespace, busy: str) -> str:
    title = {"serve": "What the server adds as a gateway", "proxy": "What the pass-through proxy adds"}[given.question]
    return (
        f"# {title}\n\n`python -m benchmarks.serving.gateway {given.question} --repeats {given.repeats} "
        f"--seconds {given.seconds:g}`, {date.today()}, {os.cpu_count()} cores ({processor()}), Python "
        f"{platform.python_version()}{versions_of(given)}. The command's docstring says what is measured.\n\n"
        "An open loop (`/s`) times each request from the moment it was due; a failure is another status than 200, or no "
        f"answer within 10 s. Medians of {given.repeats} repetitions of {given.seconds:g} s, failures summed; of what is "
        f"added, the least and the most as well. A stream has 20 events, 5 ms apart. {busy}\n\n"
        "| load | gateway | answered/s | failed | p50 ms | p99 ms | added p50 ms | added p99 | CPU ms an answer | MB |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows(found, LOADS[given.question])) + "\n"
    )


def versions_of(given: argparse.Namespace) -> str:
    found = []
    if given.litellm:
        asked = "import importlib.metadata as m; print('LiteLLM', m.version('litellm'))"
        command = [str(Path(given.litellm).with_name("python")), "-c", asked]
        found.append(printed(command))
    if given.portkey:
        package = next(Path(given.portkey).glob("node_modules/@portkey-ai/gateway/package.json"))
        found.append(f"Portkey {json.loads(package.read_text(encoding='utf-8'))['version']}")
    return "".join(f", {one}" for one in found)


def waiting() -> float:
    """Return the mean number of runnable processes over a few seconds in which the benchmark is idle."""
    seen = []
    for _ in range(30):
        seen.append(int(Path("/proc/loadavg").read_text(encoding="utf-8").split()[3].partition("/")[0]) - 1)
        time.sleep(0.1)
    return statistics.fmean(seen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", choices=LOADS)
    parser.add_argument("--litellm", default="", help="the proxy's command, in its own environment")
    parser.add_argument("--portkey", default="", help="folder in which npm has installed @portkey-ai/gateway")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    given = parser.parse_args()
    sides = [*OURS[given.question], *["LiteLLM"] * bool(given.litellm), *["Portkey"] * bool(given.portkey)]
    found: dict[str, list[dict[str, Seen]]] = {side: [] for side in sides}
    if given.question == "proxy":
        os.sched_setaffinity(0, {1})  # inherited by the clients and the upstream
    before = waiting()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "benchmarks.serving.gateway_ours", "fit", str(folder)], check=True)
        upstreams = [sys.executable, "-m", "benchmarks.serving.gateway_upstream"]
        with running(upstreams, log=folder / "upstream.log") as upstream:
            assert upstream.stdout is not None
            port = int(upstream.stdout.readline())
            for repetition in range(given.repeats):
                for side in sides if repetition % 2 == 0 else reversed(sides):
                    found[side].append(measure(side, port, folder, given))
    busy = f"Runnable processes of others: {before:.1f} on average before, {waiting():.1f} after."
    result = RESULTS / {"serve": "gateway.md", "proxy": "proxy.md"}[given.question]
    result.write_text(page(found, given, busy), encoding="utf-8")


if __name__ == "__main__":
    main()
