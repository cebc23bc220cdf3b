"""Typed questions by the clients of OpenAI and TypeSafe, unmodified, through the proxy to upstreams of three shapes.

    python -m benchmarks.compatibility.decisions [--work FOLDER]        # about a minute, and once to install the clients

Each of 100 requests with one to twelve questions has a known answer (`decisions_upstream`): both clients must get it
from an upstream that speaks OpenAI's decisions, one that speaks System One, and one that speaks chat completions alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS

RESULT = RESULTS / "decision_clients.md"
CLIENTS = ("openai==3.57.0", "typesafe-sdk==0.7.5")
SHAPES = ("openai", "systemone", "chat")
UPSTREAM_PORT, PROXY_PORT = 8531, 8532
MACHINE = "2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11"


@contextmanager
def process(*command: str, url: str) -> Iterator[None]:
    """Run a server; it is ready once `url` answers anything."""
    running = subprocess.Popen([sys.executable, "-m", *command])
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1)
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        running.terminate()
        running.wait(30)


def environment(work: Path) -> Path:
    """Return the Python of the clients' own environment, made at the first run."""
    python = work / "clients" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(work / "clients")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *CLIENTS], check=True)
    return python


def measure(python: Path, work: Path, shape: str) -> dict[str, Any]:
    """Return what both clients got through a proxy in front of an upstream of one shape."""
    settings = work / f"gateway-{shape}.yaml"
    settings.write_text(
        f"upstreams: {{judge: {{base_url: 'http://127.0.0.1:{UPSTREAM_PORT}/v1'}}}}\n"
        f"decisions: {{upstream: judge, shape: {shape}}}\n"
    )
    script = Path(__file__).with_name("decisions_clients.py")
    exact, refuses = "labels" if shape == "chat" else "exact", "never" if shape == "systemone" else "refuses"
    proxy = ("smallfirst.cli.main", "proxy", str(settings), "--port", str(PROXY_PORT))
    with process(*proxy, url=f"http://127.0.0.1:{PROXY_PORT}/health"):
        command = [str(python), str(script), f"http://127.0.0.1:{PROXY_PORT}", exact, refuses]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    lines = [
        "# Typed questions by the clients of OpenAI and TypeSafe",
        "",
        f"`python -m benchmarks.compatibility.decisions`, 2026-11-27, {MACHINE}. Clients: {', '.join(CLIENTS)}, unmodified.",
        "",
        "Every request has a known answer. `different` counts questions whose probabilities, label, order or name are not",
        "exactly those that the upstream gave (of a chat model: whose label is not). The first request is three questions",
        "about one ticket; one in twenty is refused in part where the upstream can refuse.",
        "",
        "| upstream speaks | client | requests | questions | refusals | different |",
        "|---|---|---|---|---|---|",
    ]
    for shape, by_client in found.items():
        for client in ("openai", "typesafe-sdk"):
            one = by_client[client]
            counts = (one["requests"], one["questions"], one["refusals"], len(one["different"]))
            lines.append(f"| {shape} | {client} | {' | '.join(map(str, counts))} |")
    lines += ["", "What the clients raise, by upstream, for a 429 and for a request outside the documented limits:", ""]
    for shape, by_client in found.items():
        lines += [f"- {shape}: {said}" for said in by_client["errors"]]
    different = [
        f"- {shape}, {c}: {d}" for shape, one in found.items() for c in CLIENT_NAMES for d in one[c]["different"][:3]
    ]
    return "\n".join([*lines, *(["", "Differences:", "", *different] if different else []), ""])


CLIENT_NAMES = ("openai", "typesafe-sdk")


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "decision-clients")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    python = environment(work)
    upstream = ("benchmarks.compatibility.decisions_upstream", str(UPSTREAM_PORT))
    with process(*upstream, url=f"http://127.0.0.1:{UPSTREAM_PORT}/"):
        found = {shape: measure(python, work, shape) for shape in SHAPES}
    RESULT.write_text(page(found), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
