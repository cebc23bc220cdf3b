"""Measure what the pass-through proxy adds to an upstream that answers at once, beside other gateways.

    python -m benchmarks.serving.proxy [--litellm ENVIRONMENT/bin/litellm] [--portkey FOLDER] [--repeats 5] [--seconds 5]

On one machine, in one run, each in a process of its own on loopback: an instant upstream (gateway_upstream.py), the
clients (gateway_load.py), and in turn each gateway in front of that upstream. Ours: `plain` passes on, `capture` hands
every exchange to the process that stores it as well. LiteLLM checks its master key; its database is off. Portkey is
told the upstream by headers. Each gateway's process is bound to one core (`taskset`), clients and upstream to the other.

«Added» is the gateway's latency minus that of the upstream alone in the same repetition under the same load. Medians
over the repetitions, whose order alternates. Writes benchmarks/results/proxy.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.datasets import RESULTS
from benchmarks.serving.gateway import (
    KEY,
    LITELLM,
    MODEL,
    QUIET,
    Running,
    Seen,
    free_port,
    load,
    seen_of,
    start,
    stopped,
    wait_for,
    waiting,
)  # fmt: skip

RESULT = RESULTS / "proxy.md"
LOADS: dict[str, dict[str, Any]] = {
    "1 client": {"clients": 1},
    "64 clients": {"clients": 64},
    "200/s": {"rate": 200},
    "16 streams": {"clients": 16, "stream": True},
}
FIRST = ", first event"
SETTINGS = """\
upstreams: {{instant: {{base_url: "http://127.0.0.1:{upstream}/v1"}}}}
prices: {{tokens: {{instant: {{input_usd_per_mtok: 1, output_usd_per_mtok: 4}}}}}}
"""
NOT_MEASURED = (
    "Not measured: Bifrost 1.6.3, whose npm package only downloads a binary from its maker's server, which could not be "
    "reached; LiteLLM's Rust gateway, which no package of PyPI holds (LiteLLM 1.108.7 brings a native library, and its "
    "own table of routes keeps chat completions in Python); Portkey's streams, which failed (npm leaves out the install "
    "script that patches a package it needs). Published for one client on other machines: 0.6 to 0.9 ms "
    "p99 for both (BerriAI/ai-gateway-bench)."
)
FIRST_CORE, SECOND_CORE = "0", "1"


def bound(command: list[str]) -> list[str]:
    return ["taskset", "-c", FIRST_CORE, *command]


def command_of(side: str, port: int, upstream: int, folder: Path, peers: argparse.Namespace) -> tuple[list[str], dict]:
    """Return the command of a gateway and its environment."""
    if side == "LiteLLM":
        config = folder / "litellm.yaml"
        config.write_text(LITELLM.format(model=MODEL, upstream=upstream, key=KEY), encoding="utf-8")
        at = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        return [peers.litellm, "--config", str(config), *at], QUIET
    if side == "Portkey":
        entry = next(Path(peers.portkey).glob("node_modules/@portkey-ai/gateway/build/start-server.js"))
        return ["node", str(entry), f"--port={port}", "--headless"], {"NODE_ENV": "production"}
    kept = "capture: {}\n" if side == "capture" else ""
    home = folder / side
    home.mkdir(exist_ok=True)
    (home / "gateway.yaml").write_text(SETTINGS.format(upstream=upstream) + kept, encoding="utf-8")
    command = [sys.executable, "-m", "smallfirst.cli.main", "proxy", str(home), "--port", str(port)]
    return command, {"SMALLFIRST_HOME": str(home / "state")}


def headers_of(side: str, upstream: int) -> dict[str, str]:
    address = f"http://127.0.0.1:{upstream}/v1"
    return {"x-portkey-provider": "openai", "x-portkey-custom-host": address} if side == "Portkey" else {}


@contextmanager
def gateway(side: str, upstream: int, folder: Path, peers: argparse.Namespace) -> Iterator[Running]:
    """Yield a gateway that has answered its first requests."""
    port = free_port()
    command, environment = command_of(side, port, upstream, folder, peers)
    process = start(bound(command), folder / f"{side}.log", **environment)
    with stopped(process):
        wait_for(port, process, folder)
        load(port, {"clients": 4}, 2, headers=headers_of(side, upstream))
        yield Running(port, process)


def measure(side: str, upstream: int, folder: Path, peers: argparse.Namespace) -> dict[str, Seen]:
    """Run one repetition of one side under all loads."""
    found: dict[str, Seen] = {}
    with gateway(side, upstream, folder, peers) as running:
        for name, kind in LOADS.items():
            alone, busy_s = load(upstream, kind, peers.seconds), running.busy_s()
            got = load(running.port, kind, peers.seconds, headers=headers_of(side, upstream))
            found[name] = seen_of(got, alone, running.busy_s() - busy_s, running.memory_mb())
            print(side, name, found[name], flush=True)
            if "first_p50_ms" in got and "first_p50_ms" in alone:
                ours, theirs = ({**one, **{k: one[f"first_{k}"] for k in ("p50_ms", "p99_ms")}} for one in (got, alone))
                found[name + FIRST] = seen_of(ours, theirs, running.busy_s() - busy_s, running.memory_mb())
    return found


def rows(found: dict[str, list[dict[str, Seen]]]) -> Iterator[str]:
    """Lines of the table, load by load."""
    for name in (*LOADS, *(name + FIRST for name in LOADS)):
        for side, repetitions in found.items():
            if name not in repetitions[0]:
                continue
            columns = list(zip(*(r[name] for r in repetitions), strict=True))
            seen = Seen(*(statistics.median(column) for column in columns))
            failed, n = (sum(getattr(r[name], key) for r in repetitions) for key in ("failed", "n"))
            if failed == n:
                continue
            title = side if side in ("LiteLLM", "Portkey") else f"ours, {side}"
            added = columns[Seen._fields.index("added_p50_ms")]
            yield (
                f"| {name} | {title} | {seen.rate:,.0f} | {failed} of {n:,} | {seen.p50_ms:.2f} | {seen.p99_ms:.2f} | "
                f"**{seen.added_p50_ms:.2f}** ({min(added):.2f} to {max(added):.2f}) | {seen.added_p99_ms:.2f} | "
                f"{seen.busy_ms:.2f} | {seen.memory_mb:.0f} |"
            )


def page(found: dict[str, list[dict[str, Seen]]], peers: argparse.Namespace, versions: str, busy: str) -> str:
    return (
        "# What the pass-through proxy adds\n\n"
        f"`python -m benchmarks.serving.proxy --repeats {peers.repeats} --seconds {peers.seconds:g}`, 2026-11-27, "
        f"2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11{versions}.\n\n"
        "An upstream that answers at once, on loopback. The gateway's process has one core (`taskset`), which is half of a "
        "physical one here; clients and upstream have the other half. «Added» is latency beyond that of the upstream alone "
        "under the same load in the same repetition, with the smallest and the largest of the repetitions. An open loop "
        f"(`/s`) times each request from the moment it was due. Medians of {peers.repeats} repetitions of "
        f"{peers.seconds:g} s, failures summed. {busy}\n\n"
        "A stream has 20 events, 5 ms apart. `plain` passes on; `capture` stores every exchange as well (its process is bound to the same core). LiteLLM: "
        "master key, no database. Portkey: no key, no cache.\n\n"
        "| load | gateway | answered/s | failed | p50 ms | p99 ms | added p50 ms | added p99 | CPU ms an answer | MB |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows(found)) + f"\n\n{NOT_MEASURED}\n"
    )


def versions_of(peers: argparse.Namespace) -> str:
    found = []
    if peers.litellm:
        asked = "import importlib.metadata as m; print('LiteLLM', m.version('litellm'))"
        command = [str(Path(peers.litellm).with_name("python")), "-c", asked]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if peers.portkey:
        package = next(Path(peers.portkey).glob("node_modules/@portkey-ai/gateway/package.json"))
        asked = f"console.log('Portkey ' + require('{package}').version + ' on Node ' + process.version)"
        found.append(subprocess.run(["node", "-e", asked], capture_output=True, text=True, check=True).stdout.strip())
    return "".join(f", {one}" for one in found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--litellm", default="", help="the proxy's command, in its own environment")
    parser.add_argument("--portkey", default="", help="folder in which npm has installed @portkey-ai/gateway")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    peers = parser.parse_args()
    sides = ["plain", "capture", *["LiteLLM"] * bool(peers.litellm), *["Portkey"] * bool(peers.portkey)]
    found: dict[str, list[dict[str, Seen]]] = {side: [] for side in sides}
    os.sched_setaffinity(0, {int(SECOND_CORE)})  # inherited by the clients and the upstream
    before = waiting()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        upstream = start([sys.executable, "-m", "benchmarks.serving.gateway_upstream"], folder / "upstream.log")
        with stopped(upstream):
            assert upstream.stdout is not None
            port = int(upstream.stdout.readline())
            for repetition in range(peers.repeats):
                for side in sides if repetition % 2 == 0 else reversed(sides):
                    found[side].append(measure(side, port, folder, peers))
    busy = f"Runnable processes of others: {before:.1f} on average before, {waiting():.1f} after"
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    busy += f"; those of the benchmark went before them (nice {nice}, for all sides)." if nice else "."
    RESULT.write_text(page(found, peers, versions_of(peers), busy), encoding="utf-8")


if __name__ == "__main__":
    main()
