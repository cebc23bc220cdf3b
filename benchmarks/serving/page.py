"""The result page of speed.py: tables, method and machine."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.choice import CLIENTS, EQUAL
from benchmarks.serving.measure import Store
from smallfirst.stats.intervals import wilson

OURS = "smallfirst"


def write_page(path: Path, store: Store, sides: Sequence[str], levels: Sequence[int], tokens: float) -> None:
    """Nothing back."""
    bounds = [found["bound"]["square"] for found in store.found["bound"].values()]
    bound = statistics.median(bounds)
    lines = ["# Classification over HTTP, side by side on two cores", "", *_what(store), ""]
    lines += [*_bounds(store, tokens), ""]
    for level in levels:
        lines += ["## 1 client" if level == 1 else f"## {level} clients", "", *_table(store, sides, level, bound), ""]
        lines += [*_against(store, sides, level), ""]
    lines += ["## All rows", "", *_whole(store, sides, levels), ""]
    lines += ["## How the peers were set", "", *_choices(store), "", HOW]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _what(store: Store) -> Iterator[str]:
    plan, rounds = store.found["plan"], len(store.found["bound"])
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "xllamacpp"))
    yield f"{date.today()}, {plan['cores']} cores of {_processor()}, Python {platform.python_version()}, {packages}."
    yield f"SmolLM2-135M, fine-tuned for Banking77 (weights {plan['weights']}). {rounds} rounds of {plan['rows']} test"
    yield "rows for each number of clients. By `python -m benchmarks.serving.speed`, which says how to run it."


def _bounds(store: Store, tokens: float) -> Iterator[str]:
    found = list(store.found["bound"].values())
    square, own = (statistics.median(one[f"{name}_gflops"] for one in found) for name in ("square", "model"))
    allowed, less = (statistics.median(one["bound"][name] for one in found) for name in ("square", "model"))
    weights = found[0]["weights"] / 1e6
    yield f"The bound: torch multiplies bf16 matrices (2048 x 2048) at {square:.0f} GFLOP/s here, median of the rounds."
    yield f"A prompt has {tokens:.1f} tokens on average and the model {weights:.0f} M weights outside its"
    yield f"embedding, so reading prompts whole is bounded at {allowed:.0f} requests/s. At the model's own shapes and"
    yield f"32 prompts together the rate is {own:.0f} GFLOP/s, which would allow {less:.0f} requests/s."


def _table(store: Store, sides: Sequence[str], level: int, bound: float) -> Iterator[str]:
    heads = "requests/s (least to most)", "p50 ms", "p95 ms", "p99 ms", "accuracy", "of the bound", "peak MB"
    yield f"| server | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for side in sides:
        cells = store.cells(side, level)
        rates = sorted(cell["requests_per_s"] for cell in cells)
        ms = np.percentile([value for cell in cells for value in cell["ms"]], (50, 95, 99))
        n = sum(len(cell["ms"]) for cell in cells)
        failed = sum(cell["failed"] for cell in cells)
        rate = statistics.median(rates)
        shown = (
            f"{rate:.1f} ({rates[0]:.1f} to {rates[-1]:.1f})",
            *(f"{value:.1f}" for value in ms),
            f"{wilson(sum(cell['right'] for cell in cells), n)} n={n}" + (f", {failed} failed" if failed else ""),
            f"{rate / bound:.0%}",
            f"{max(cell['peak_mb'] for cell in cells):.0f}",
        )
        yield f"| {side} | {' | '.join(shown)} |"


def _against(store: Store, sides: Sequence[str], level: int) -> Iterator[str]:
    """Return ours over the best peer, by rate and by p50."""
    peers = [side for side in sides if side != OURS]
    if OURS not in sides or not peers:
        return

    def rate(side: str) -> float:
        return float(statistics.median(cell["requests_per_s"] for cell in store.cells(side, level)))

    def p50(side: str) -> float:
        return float(statistics.median(value for cell in store.cells(side, level) for value in cell["ms"]))

    fastest, first = max(peers, key=rate), min(peers, key=p50)
    yield f"Ours answers {rate(OURS) / rate(fastest):.2f} times the requests/s of the fastest peer ({fastest});"
    yield f"its p50 is {p50(OURS) / p50(first):.2f} times the lowest of a peer ({first})."


def _whole(store: Store, sides: Sequence[str], levels: Sequence[int]) -> Iterator[str]:
    """Return accuracy over all rows, agreement with ours, and the time to start."""

    def said(side: str) -> list[str | None]:
        return [label for level in levels for cell in store.cells(side, level) for label in cell["said"]]

    yield "| server | accuracy | other answers than ours | start s (median) |"
    yield "|---|---|---|---|"
    for side in sides:
        cells = [cell for level in levels for cell in store.cells(side, level)]
        found = wilson(sum(cell["right"] for cell in cells), len(said(side)))
        other = sum(a != b for a, b in zip(said(side), said(OURS), strict=True)) if OURS in sides else 0
        yield f"| {side} | {found} n={found.n} | {other} | {statistics.median(cell['start_s'] for cell in cells):.0f} |"


def _choices(store: Store) -> Iterator[str]:
    yield f"On validation rows, at {CLIENTS} clients, once, before any test row was asked. A GGUF file counts as"
    yield f"equal if its accuracy is at most {EQUAL:.1%} below that of bf16."
    yield ""
    yield "| peer | file | options | requests/s | accuracy | peak MB | start s | |"
    yield "|---|---|---|---|---|---|---|---|"
    for who, found in store.choice.items():
        for one in found["tried"]:
            shown = (
                one["file"],
                f"`{' '.join(one['options']) or 'as it comes'}`",
                f"{one['requests_per_s']:.1f}",
                f"{wilson(one['right'], one['n'])} n={one['n']}",
                f"{one['peak_mb']:.0f}",
                f"{one['start_s']:.0f}",
                "chosen" if one == found["chosen"] else "",
            )
            yield f"| {who} | {' | '.join(shown)} |"


def _processor() -> str:
    """The name in /proc/cpuinfo."""
    names: list[Any] = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return str(names[0]) if names else platform.machine()


HOW = """## How it was measured

- Closed loop: each client sends its next request when it has read its last answer. Requests are made beforehand and
  answers are read afterwards; the clients are one process on the same two cores, for every server alike. A time runs
  from sending to the whole answer, over a connection that is open.
- Before the measured requests each client sends two others, and others run until the last measured one is answered, so
  all clients are busy throughout. requests/s are medians of the rounds; percentiles are over all rounds' requests.
- Servers run one at a time, started anew each round, in rotating order; vLLM, which compiles for long, is started
  once and stopped by SIGSTOP while others are measured. No test row is asked twice: each round and
  number of clients has rows of its own, the same for every server, so no prompt cache can contain them.
- Ours gets the text as an OpenAI chat request with a key, tokenizes it, writes its ledger, and answers the label.
  llama.cpp (`/completion`) and vLLM (`/v1/completions`) get the prompt in tokens and answer one, greedily; transformers
  + FastAPI get the prompt's text. No peer has a key or keeps a ledger. An answer that means no label counts as wrong.
- llama.cpp has as many slots as there are clients, and two threads. The wheel of xllamacpp on PyPI uses AVX2 and
  nothing newer; "built here" means that the same release was compiled for this processor.
- Peak MB is the sum over a server's processes of each one's peak resident memory; shared memory is counted in each."""
