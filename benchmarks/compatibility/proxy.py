"""Show that nothing changes when the proxy stands in between: openai-python's own tests, bytes, and unmodified clients.

    python -m benchmarks.compatibility.proxy [--work FOLDER]     # about ten minutes on two cores, and once to install

1. openai-python's tests of its resources, from its source distribution, against an upstream that answers with samples
   of their types (`sdk_samples`, `sdk_upstream`): directly, and through the proxy while it captures. Outcomes are equal.
2. The requests of those tests, recorded, in a random order, eight at a time, once directly and once through the proxy:
   every byte of both ways is compared (`replay`), with and without capture.
3. Clients of other projects, unmodified, directly and through the proxy (`proxy_clients`).

The environment of the clients is made under FOLDER at the first run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.compatibility import replay
from benchmarks.paths import RESULTS

RESULT = RESULTS / "proxy_compatibility.md"
OPENAI = "3.57.0"
HERE = Path(__file__).parent
TESTS = (
    "pytest>=9",
    "pytest-asyncio>=1.4",
    "pytest-xdist>=3.6",
    "inline-snapshot>=0.28",
    "rich>=13.7",
    "trio",
    "aiohttp",
)
TESTS += ("botocore", "Pillow", "azure-identity", "numpy", "pandas", "websockets<16", "google-auth[requests]", "httpx2")
CLIENTS = ("langchain-openai==1.7.4", "llama-index-core==0.14.25", "llama-index-llms-openai==0.8.3")
CLIENTS += ("openai-agents==0.20.0", "litellm==1.110.2", "instructor==1.17.0", "dspy==3.4.1", "anthropic==2.14.0")
UPSTREAM, PLAIN, CAPTURING = 8611, 8612, 8613
MACHINE = "2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11"
NAMED = {
    "header x-seen-accept-encoding": "`accept-encoding` of the request: while it captures, the proxy offers the upstream "
    "only the codings that it can read itself (gzip, deflate)",
    "header connection": "headers of one connection (RFC 9110, 7.6.1)",
}


def environment(work: Path) -> Path:
    """Python with the clients and what openai-python's tests need; their tests stand beside it."""
    python = work / "env" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(work / "env")], check=True)
        for wanted in (TESTS, CLIENTS):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
    if not (work / f"openai-{OPENAI}").exists():
        command = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", str(work), f"openai=={OPENAI}"], check=True)
        with tarfile.open(work / f"openai-{OPENAI}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    return python


@contextmanager
def process(*command: str, port: int) -> Iterator[None]:
    """Run a module of this project until the block ends; it is ready once its port answers."""
    running = subprocess.Popen([sys.executable, "-m", *command])
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert running.poll() is None
                time.sleep(0.1)
        yield
    finally:
        running.terminate()
        running.wait()


@contextmanager
def proxy(port: int, *, capture: bool) -> Iterator[Path]:
    """A proxy in front of the upstream, with its state folder."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (
            f'upstreams: {{default: {{base_url: "http://127.0.0.1:{UPSTREAM}/v1"}}}}\n' + "capture: {}\n" * capture
        )
        (Path(folder) / "gateway.yaml").write_text(settings, encoding="utf-8")
        with process("smallfirst.cli.main", "proxy", folder, "--port", str(port), port=port):
            yield Path(folder)


class Suite:
    """openai-python's own tests."""

    def __init__(self, work: Path, python: Path, tests: str) -> None:
        self._folder, self._python, self._tests = work / f"openai-{OPENAI}", python, tests

    def run(self, port: int, *more: str, **variables: str) -> None:
        """Run the tests against a port."""
        env = {**os.environ, **variables, "PYTHONPATH": f"src:{HERE}"}
        env |= {"TEST_API_BASE_URL": f"http://127.0.0.1:{port}/v1", "no_proxy": "127.0.0.1"}
        command = [str(self._python), "-m", "pytest", *self._tests.split(), "-q", "-n0", "-p", "no:cacheprovider"]
        subprocess.run(
            [*command, "--tb=no", "-W", "ignore", *more], cwd=self._folder, env=env, stdout=subprocess.DEVNULL
        )

    def samples(self, path: Path) -> None:
        """Write what each request expects."""
        self.run(1, "-p", "sdk_samples", SAMPLES=str(path))
        path.with_name(f"{path.name}.main").rename(path)

    def outcomes(self, port: int, path: Path) -> dict[str, str]:
        """The outcome of each test."""
        self.run(port, f"--junitxml={path}")
        cases = ElementTree.parse(path).iter("testcase")
        return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    return next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")


def clients(python: Path, folder: Path) -> tuple[list[dict[str, Any]], int, int]:
    """A row for each call, the number of requests, and how many of them arrived with other bytes than directly."""
    recording = folder / "clients.jsonl"
    with process("benchmarks.compatibility.clients_upstream", str(UPSTREAM), str(recording), port=UPSTREAM):
        with proxy(CAPTURING, capture=True):
            recording.write_text("")  # from here on
            command = [str(python), str(HERE / "proxy_clients.py"), str(UPSTREAM), str(CAPTURING)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            assert done.returncode == 0, done.stderr[-2000:]
        arrived = [json.loads(line) for line in recording.read_text().strip("\0").splitlines()]
    odd = sum(n % 2 for n in Counter((row["line"], _without_boundary(row["body"])) for row in arrived).values())
    return [json.loads(line) for line in done.stdout.splitlines()], len(arrived), odd


def _without_boundary(body: str) -> str:
    first = body.partition("\r\n")[0]
    return body.replace(first.strip("-"), "") if first.startswith("--") else body


def stored(folder: Path) -> int:
    """Exchanges in the capture store of a proxy that has ended."""
    from smallfirst.traffic.capture_store import CaptureStore

    return sum(1 for _ in CaptureStore(folder / ".smallfirst" / "capture.db").exchanges())


def page(
    tests: Mapping[str, Any], compared: Mapping[str, replay.Compared], calls: tuple[list[dict[str, Any]], int, int]
) -> str:
    """The page of results."""
    direct, proxied = tests["direct"], tests["proxied"]
    other = [name for name in direct if direct[name] != proxied.get(name)]
    counts = ", ".join(f"{n:,} {kind}" for kind, n in Counter(direct.values()).most_common())
    rows, n_requests, odd = calls
    lines = [
        "# The proxy changes nothing",
        "",
        f"`python -m benchmarks.compatibility.proxy`, 2026-11-27, {MACHINE}, other work on the same cores. The upstream is"
        " on loopback and answers from types and scripts, not from a model.",
        "",
        f"## openai-python {OPENAI}, its own tests",
        "",
        f"{len(direct):,} tests of its resources, directly: {counts}. Through the proxy, which captures meanwhile: "
        f"**{len(other)} outcomes differ**" + (f": {'; '.join(other[:10])}." if other else "."),
        "The upstream answers each request with a sample of the type that the SDK expects there, so strict validation passes;"
        " what fails directly as well misses a field in its sample.",
        "",
        "## Bytes",
        "",
        "The requests of these tests, in a random order and eight at a time, once directly and once through the proxy. A"
        " tenth of the bodies is sent in chunks; two thirds of the requests ask for an error (400, 401, 429, 500, 503), a"
        " compressed or chunked answer or a megabyte. Compared are status, every header and its order, body, framing and the"
        " number of pieces of a stream; and by hashes in the answer the request's line, body and headers as they arrived.",
        "",
        "| proxy | requests | MB both ways | differences in anything else | named headers |",
        "|---|---|---|---|---|",
    ]
    for name, one in compared.items():
        named = {what: n for what, n in one.differences.items() if what in NAMED}
        more = {what: n for what, n in one.differences.items() if what not in NAMED}
        told = ", ".join(f"{what}: {n}" for what, n in more.items()) or "0"
        lines.append(
            f"| {name} | {one.n:,} | {one.n_bytes / 1e6:,.0f} | {told} | "
            f"{', '.join(f'{what}: {n:,}' for what, n in named.items()) or 'none'} |"
        )
    kinds = next(iter(compared.values())).kinds
    lines += ["", "Kinds of answers: " + ", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common()) + ".", ""]
    lines += [f"- {what}: {why}." for what, why in NAMED.items()]
    lines.append(
        "- pieces of a stream: two pieces that the upstream sent 20 ms apart arrived together, in the same order and with"
        " the same bytes; it happens where the machine is busy for longer than that."
    )
    for name, one in compared.items():
        lines += [f"- {name}, example: {text}" for what, text in one.examples.items() if what not in NAMED]
    good = sum(row["equal"] and not row["failed"] for row in rows)
    lines += [
        "",
        "## Unmodified clients",
        "",
        f"{good} of {len(rows)} calls give directly and through the proxy the same; {odd} of {n_requests} requests arrived"
        " with other bytes than directly.",
        "",
        "| client | version | calls | same |",
        "|---|---|---|---|",
    ]
    for client in dict.fromkeys(row["client"] for row in rows):
        of = [row for row in rows if row["client"] == client]
        same = sum(row["equal"] and not row["failed"] for row in of)
        lines.append(
            f"| {client} | {of[0]['version']} | {', '.join(row['what'] for row in of)} | {same} of {len(of)} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("compatibility"))
    parser.add_argument("--tests", default="tests/api_resources")
    given = parser.parse_args()
    work = given.work.absolute()
    python = environment(work)
    suite = Suite(work, python, given.tests)
    if not (work / "samples.json").exists():
        suite.samples(work / "samples.json")
    upstream = ("benchmarks.compatibility.sdk_upstream", str(UPSTREAM), str(work / "samples.json"))
    with process(*upstream, str(work / "requests.jsonl"), port=UPSTREAM):
        direct = suite.outcomes(UPSTREAM, work / "direct.xml")
    with process(*upstream, port=UPSTREAM):
        with proxy(CAPTURING, capture=True):
            proxied = suite.outcomes(CAPTURING, work / "proxied.xml")
        requests = replay.requests_of(work / "requests.jsonl")
        compared = {}
        for name, port in (("passes on", PLAIN), ("captures", CAPTURING)):
            with proxy(port, capture=port == CAPTURING):
                compared[name] = asyncio.run(replay.compare(requests, UPSTREAM, port))
    text = page({"direct": direct, "proxied": proxied}, compared, clients(python, work))
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
