"""Classification over HTTP, side by side in one run: ours, llama.cpp, vLLM's CPU build, transformers + FastAPI.

    python -m benchmarks.serving.speed --task TASK.yaml --home STATE_FOLDER --work FOLDER [--vllm PYTHON]
        [--llama-server BINARY] [--cores 0,1] [--rounds 3] [--rows 200] [--only NAME,…]

TASK.yaml has a promoted small model in STATE_FOLDER that answers by code tokens; the same weights are served by all.
Peers with their own environments are left out unless named: `benchmarks/peers/serve_vllm.py` says how to
set up vLLM's. A test row is asked at most once per server, so no cache can contain it; each server and number of
clients gets the same rows. A round restarts each server, one at a time, and the order rotates from round to round;
vLLM, which compiles for a minute or more, is started once and paused by a signal while others are measured. The settings
of the peers are those that were the fastest on validation rows at equal accuracy (serving_speed.md has what was tried).

The page is written at the end. Three rounds take ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import RESULTS, processor
from benchmarks.processes import printed
from benchmarks.serving.servers import (
    Row,
    Server,
    Side,
    awake,
    llama,
    measure,
    ours,
    own_home,
    say,
    started,
    transformers,
    vllm,
)  # fmt: skip
from smallfirst.base.stats.intervals import wilson
from smallfirst.models.manifest import Manifest, read_manifest

LEVELS = (1, 8, 32)
OURS, BOUND_S = "smallfirst", 1.5
Cells = dict[tuple[str, int], list[dict[str, Any]]]
"""What each round measured, by server and clients."""


def read_rows(path: Path, model: Path, manifest: Manifest) -> list[Row]:
    """Return a JSON Lines file in an order drawn with a fixed seed, with prompts and their tokens."""
    from smallfirst.models.local.tokenizer import encode_prompt, load_tokenizer

    tokens, rows = load_tokenizer(model), []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = manifest.task.prompt(row["text"])
        ids = tuple(encode_prompt(tokens, prompt, manifest.max_tokens))
        rows.append(Row(row["text"], row["label"], prompt, ids))
    random.Random(0).shuffle(rows)
    return rows


def promoted_model(task: Path, home: Path) -> Path:
    from smallfirst.path.project.task_file import read_task_file

    runs = sorted((home / "tasks" / read_task_file(task).name).glob("*/promoted.json"))
    if not runs:
        sys.exit(f"{home} holds no promoted model of {task}")
    return runs[-1].parent / "model"


def code_texts(model: Path, manifest: Manifest) -> dict[Any, str]:
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(model / "tokenizer.json"))
    return {
        tokens.decode([code]): label for code, label in zip(manifest.label_tokens, manifest.task.labels, strict=True)
    }


def all_sides(wanted: argparse.Namespace, model: Path, manifest: Manifest) -> list[Side]:
    labels, file = code_texts(model, manifest), wanted.work / "q4_0.gguf"
    write_gguf(wanted.task, wanted.home, file)
    xllamacpp = [sys.executable, "-m", "benchmarks.peers.serve_llama"]
    found = [ours(wanted.task, wanted.home, manifest)]
    found.append(llama("llama.cpp (xllamacpp)", xllamacpp, file, wanted.cores, labels))
    if wanted.llama_server:
        found.append(llama("llama.cpp (built here)", [str(wanted.llama_server)], file, wanted.cores, labels))
    if wanted.vllm:
        found.append(vllm(wanted.vllm, model, wanted.cores, labels, "--preload", "--no-enable-prefix-caching"))
    found += [transformers(model, manifest, wanted.cores), transformers(model, manifest, wanted.cores, "--batch", "32")]
    return [side for side in found if not wanted.only or any(side.name.startswith(name) for name in wanted.only)]


def write_gguf(task: Path, home: Path, target: Path) -> None:
    """Write the model's matrices in 4 bits unless they are there: norms stay fp32, the embeddings are q8_0."""
    if target.exists():
        return
    import gguf

    source = target.with_name("bf16.gguf")
    program = [str(Path(sys.executable).with_name("smallfirst")), "export", str(task), str(source)]
    environment = {**os.environ, "SMALLFIRST_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    subprocess.run([*program, "--precision", "bf16", "--rows", "32"], env=environment, check=True)
    read = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, read.get_field("general.architecture").contents())
    for field in read.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in read.tensors:
        kind = gguf.GGMLQuantizationType["Q4_0" if tensor.name.startswith("blk") else "Q8_0"]
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bound(model: Path, tokens: float, cores: Sequence[int]) -> dict[str, Any]:
    """Return what `own_bound` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving.speed", "--bound", model, tokens]
    found: dict[str, Any] = json.loads(printed(command, OMP_NUM_THREADS=str(len(cores))))
    return found


def own_bound(model: Path, tokens: float) -> dict[str, Any]:
    """Return the requests/s that the processor's bf16 matrix rate allows if prompts are read whole and nothing else takes time.

    The rate in GFLOP/s is that on large square matrices (the best measured here) and that at the model's own shapes with
    32 prompts together; each allows rate / (2 x weights outside the embedding x tokens of a prompt). Work that grows with
    the prompt's square (attention) is not counted.
    """
    import torch

    config = json.loads((model / "config.json").read_text())
    shapes = layer_shapes(config)
    weights = config["num_hidden_layers"] * sum(m * n for m, n in shapes)
    with torch.inference_mode():
        square, own = matrix_rate([(2048, 2048)], 2048), matrix_rate(shapes, round(LEVELS[-1] * tokens))
    bound = {name: found / (2 * weights * tokens) for name, found in (("square", square), ("model", own))}
    return {"square_gflops": square / 1e9, "model_gflops": own / 1e9, "weights": weights, "bound": bound}


def matrix_rate(shapes: list[tuple[int, int]], rows: int) -> float:
    """Return FLOP/s of multiplying `rows` vectors by matrices of these shapes (out, in), one after another."""
    import torch
    from torch.nn.functional import linear

    pairs = [(torch.randn(rows, n, dtype=torch.bfloat16), torch.randn(m, n, dtype=torch.bfloat16)) for m, n in shapes]
    for a, weight in pairs:
        linear(a, weight)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < BOUND_S:
        for a, weight in pairs:
            linear(a, weight)
        count += 1
    return count * sum(2 * rows * m * n for m, n in shapes) / (time.perf_counter() - began)


def layer_shapes(config: dict[str, int]) -> list[tuple[int, int]]:
    """Return the shapes of the matrices of one layer of a Llama model."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    return [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), *[(inner, hidden)] * 2, (hidden, inner)]


class Rounds:
    """Measures sides; pauses those that are slow to start instead of ending them."""

    def __init__(self, folder: Path, others: Sequence[Row], stack: ExitStack) -> None:
        self.folder, self.others, self._stack = folder, others, stack
        self.cells: Cells = defaultdict(list)
        self._kept: dict[str, Server] = {}

    def one_side(self, side: Side, number: int, rows: Sequence[Row]) -> None:
        groups = [[level] for level in LEVELS] if side.for_clients else [LEVELS]
        n = len(rows) // len(LEVELS)
        for group in groups:
            with self._running(side, group[-1]) as server:
                for level in group:
                    at = LEVELS.index(level) * n
                    cell = asyncio.run(measure(server, rows[at : at + n], self.others, clients=level))
                    self.cells[side.name, level].append(cell)
                    say(f"round {number + 1}, {side.name}, {level} clients: {cell['requests_per_s']:.1f} requests/s")

    def _running(self, side: Side, clients: int) -> AbstractContextManager[Server]:
        if not side.slow_to_start:
            return started(side, clients, self.folder, self.others[0])
        if side.name not in self._kept:
            begun = started(side, clients, self.folder, self.others[0])
            self._kept[side.name] = self._stack.enter_context(begun)
        return awake(self._kept[side.name])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vllm")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--cores", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200, help="for each number of clients in each round")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    return parser.parse_args()


def write_page(cells: Cells, bounds: list[dict[str, Any]], plan: dict[str, Any], sides: list[str]) -> None:
    bound = statistics.median(found["bound"]["square"] for found in bounds)
    lines = ["# Classification over HTTP, side by side on two cores", "", *_what(plan, len(bounds)), ""]
    lines += [*_bounds(bounds, plan["tokens"]), ""]
    for level in LEVELS:
        lines += ["## 1 client" if level == 1 else f"## {level} clients", "", *_table(cells, sides, level, bound), ""]
        lines += [*_against(cells, sides, level), ""]
    lines += ["## All rows", "", *_whole(cells, sides), "", HOW]
    (RESULTS / "serving_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _what(plan: dict[str, Any], rounds: int) -> Iterator[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "xllamacpp"))
    yield f"{date.today()}, {plan['cores']} cores of {processor()}, Python {platform.python_version()}, {packages}."
    yield f"SmolLM2-135M, fine-tuned for Banking77 (weights {plan['weights']}). {rounds} rounds of {plan['rows']} test"
    yield "rows for each number of clients. By `python -m benchmarks.serving.speed`, which says how to run it."


def _bounds(found: list[dict[str, Any]], tokens: float) -> Iterator[str]:
    square, own = (statistics.median(one[f"{name}_gflops"] for one in found) for name in ("square", "model"))
    allowed, less = (statistics.median(one["bound"][name] for one in found) for name in ("square", "model"))
    weights = found[0]["weights"] / 1e6
    yield f"The bound: torch multiplies bf16 matrices (2048 x 2048) at {square:.0f} GFLOP/s here, median of the rounds."
    yield f"A prompt has {tokens:.1f} tokens on average and the model {weights:.0f} M weights outside its"
    yield f"embedding, so reading prompts whole is bounded at {allowed:.0f} requests/s. At the model's own shapes and"
    yield f"32 prompts together the rate is {own:.0f} GFLOP/s, which would allow {less:.0f} requests/s."


def _table(measured: Cells, sides: Sequence[str], level: int, bound: float) -> Iterator[str]:
    heads = "requests/s (least to most)", "p50 ms", "p95 ms", "p99 ms", "accuracy", "of the bound", "peak MB"
    yield f"| server | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for side in sides:
        cells = measured[side, level]
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


def _against(cells: Cells, sides: Sequence[str], level: int) -> Iterator[str]:
    """Return ours over the best peer, by rate and by p50."""
    peers = [side for side in sides if side != OURS]
    if OURS not in sides or not peers:
        return

    def rate(side: str) -> float:
        return float(statistics.median(cell["requests_per_s"] for cell in cells[side, level]))

    def p50(side: str) -> float:
        return float(statistics.median(value for cell in cells[side, level] for value in cell["ms"]))

    fastest, first = max(peers, key=rate), min(peers, key=p50)
    yield f"Ours answers {rate(OURS) / rate(fastest):.2f} times the requests/s of the fastest peer ({fastest});"
    yield f"its p50 is {p50(OURS) / p50(first):.2f} times the lowest of a peer ({first})."


def _whole(measured: Cells, sides: Sequence[str]) -> Iterator[str]:
    """Return accuracy over all rows, agreement with ours, and the time to start."""

    def said(side: str) -> list[str | None]:
        return [label for level in LEVELS for cell in measured[side, level] for label in cell["said"]]

    yield "| server | accuracy | other answers than ours | start s (median) |"
    yield "|---|---|---|---|"
    for side in sides:
        cells = [cell for level in LEVELS for cell in measured[side, level]]
        found = wilson(sum(cell["right"] for cell in cells), len(said(side)))
        other = sum(a != b for a, b in zip(said(side), said(OURS), strict=True)) if OURS in sides else 0
        yield f"| {side} | {found} n={found.n} | {other} | {statistics.median(cell['start_s'] for cell in cells):.0f} |"


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


def main() -> None:
    wanted = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on exit
    os.sched_setaffinity(0, wanted.cores)
    os.environ.pop("OMP_NUM_THREADS", None)
    model = promoted_model(wanted.task, wanted.home).resolve()
    manifest = read_manifest(model)
    if manifest.kind != "label_tokens":
        sys.exit(f"{model} does not answer by code tokens")
    wanted.work = wanted.work.resolve() / manifest.weights_fingerprint
    wanted.work.mkdir(parents=True, exist_ok=True)
    wanted.home = own_home(wanted.home, wanted.work / "home")
    from smallfirst.path.project.task_file import read_task_file

    data = read_task_file(wanted.task).data
    test, others = (read_rows(Path(path), model, manifest) for path in (data.test, data.validation))
    plan: dict[str, Any] = {"weights": manifest.weights_fingerprint, "rows": wanted.rows, "cores": len(wanted.cores)}
    say(f"load of the machine before the rounds: {os.getloadavg()[0]:.1f}; nothing else should run")
    n, began = wanted.rows * len(LEVELS), time.monotonic()
    if n * wanted.rounds > len(test):
        sys.exit(f"{wanted.rounds} rounds of {n} rows are more than the {len(test)} test rows")
    plan["tokens"] = sum(len(row.ids) for row in test) / len(test)
    sides, bounds = all_sides(wanted, model, manifest), list[dict[str, Any]]()
    with ExitStack() as stack:
        rounds = Rounds(wanted.work, others, stack)
        for number in range(wanted.rounds):
            turn = number * 2 % len(sides)
            for side in sides[turn:] + sides[:turn]:
                rounds.one_side(side, number, test[number * n : (number + 1) * n])
            bounds.append(bound(model, plan["tokens"], wanted.cores))
    say(f"measured in {time.monotonic() - began:.0f} s")
    write_page(rounds.cells, bounds, plan, [side.name for side in sides])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bound"]:
        print(json.dumps(own_bound(Path(sys.argv[2]), float(sys.argv[3]))))
    else:
        main()
