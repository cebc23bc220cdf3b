"""Choose the best settings of the peers of speed.py on validation rows, before the test rows are asked.

llama.cpp: the fastest file whose accuracy is no more than half a point below that of the bf16 file, and with it the
fastest of a few settings; vLLM: the fastest of a few settings. All at 32 clients, once. The bf16, f16 and q8_0 files
come from `smallfirst export`, those of 4 and 5 bits are made from the bf16 file (norms stay fp32; the embeddings, which
are the output matrix as well, are q8_0, for llama.cpp's own tool keeps them finer than the rest too).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.measure import Store, measure, say, started
from benchmarks.serving.sides import Row, Side, llama_server, vllm, xllamacpp

CLIENTS = 32
EQUAL = 0.005
"""Largest accuracy below bf16 that still counts as equal."""
EXPORTED = ("bf16", "f16", "q8_0")
MADE = ("q5_0", "q4_0")
LLAMA: tuple[tuple[str, ...], ...] = (
    ("--no-cache-prompt",),
    (),
    ("--no-cache-prompt", "--flash-attn", "off"),
    ("--no-cache-prompt", "--flash-attn", "on"),
    ("--no-cache-prompt", "--ubatch-size", "128"),
)
VLLM: tuple[tuple[str, ...], ...] = (
    ("--preload", "--no-enable-prefix-caching"),
    ("--preload", "--no-enable-prefix-caching", "--leave-one"),
)
"""Most prompts are shorter than a block of its prefix cache (16 tokens or more), so the cache can only slow it down."""

Maker = Callable[..., Side]


def gguf_files(work: Path) -> dict[str, Path]:
    """Return the path of the file of each precision."""
    return {precision: work / "gguf" / f"{precision}.gguf" for precision in (*EXPORTED, *MADE)}


def settings(store: Store, who: str, files: dict[str, Path]) -> tuple[Path, Sequence[str]]:
    """The file and the options chosen for a peer."""
    chosen = store.choice[who]["chosen"]
    return files.get(chosen["file"], Path()), chosen["options"]


def choose(wanted: argparse.Namespace, model: Path, labels: dict[Any, str], rows: Sequence[Row], store: Store) -> None:
    """Measure and store what is missing."""
    files = gguf_files(wanted.work)
    _write_files(wanted.task, wanted.home, files)
    n, most = (16, 1) if wanted.quick else (300, 9)
    if wanted.quick:
        files = {"q8_0": files["q8_0"]}
    makers: dict[str, Maker] = {"xllamacpp": lambda file, *more: xllamacpp(file, wanted.cores, labels, *more)}
    if wanted.llama_server:
        makers["llama-server"] = lambda file, *more: llama_server(
            wanted.llama_server, file, wanted.cores, labels, *more
        )
    for who, maker in makers.items():
        if who not in store.choice:
            store.keep_choice(who, _choose_llama(maker, files, LLAMA[:most], rows[:n], rows[n:], store))
    if wanted.vllm and "vllm" not in store.choice:
        sides = [("", options, vllm(wanted.vllm, model, wanted.cores, labels, *options)) for options in VLLM[:most]]
        tried = [_try(*each, rows[:n], rows[n:], store) for each in sides]
        store.keep_choice("vllm", {"tried": tried, "chosen": max(tried, key=_rate)})


def _choose_llama(
    maker: Maker,
    files: dict[str, Path],
    settings: Sequence[Sequence[str]],
    rows: Sequence[Row],
    others: Sequence[Row],
    store: Store,
) -> dict[str, Any]:
    """What was tried and what was chosen."""
    first = settings[0]
    tried = [_try(name, first, maker(path, *first), rows, others, store) for name, path in files.items()]
    least = tried[0]["right"] - EQUAL * len(rows)
    best = max((one for one in tried if one["right"] >= least), key=_rate)
    name = best["file"]
    more = [_try(name, options, maker(files[name], *options), rows, others, store) for options in settings[1:]]
    return {"tried": [*tried, *more], "chosen": max([best, *more], key=_rate)}


def _try(
    file: str, options: Sequence[str], side: Side, rows: Sequence[Row], others: Sequence[Row], store: Store
) -> dict[str, Any]:
    with started(side, CLIENTS, store.folder, others[0]) as server:
        cell = asyncio.run(measure(server, rows, others, clients=CLIENTS))
    what = " ".join((side.name, file, *options))
    say(f"choosing, {what}: {cell['requests_per_s']:.1f} requests/s, {cell['right']} of {len(rows)} right")
    kept = {key: cell[key] for key in ("requests_per_s", "right", "no_label", "peak_mb", "start_s")}
    return {"file": file, "options": list(options), "n": len(rows), **kept}


def _rate(one: dict[str, Any]) -> float:
    return float(one["requests_per_s"])


def _write_files(task: Path, home: Path, files: dict[str, Path]) -> None:
    """Write missing files; only read `home`."""
    for precision in EXPORTED:
        if not files[precision].exists():
            say(f"writing {files[precision].name}")
            program = [str(Path(sys.executable).with_name("smallfirst")), "export", str(task), str(files[precision])]
            environment = {**os.environ, "SMALLFIRST_HOME": str(home), "HF_HUB_OFFLINE": "1"}
            command = [*program, "--precision", precision, "--rows", "32"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    for precision in MADE:
        if not files[precision].exists():
            say(f"writing {files[precision].name}")
            quantise(files["bf16"], files[precision], precision)


def quantise(source: Path, target: Path, precision: str) -> None:
    """Write the matrices of a bf16 GGUF file in a precision that the gguf package supports."""
    import gguf

    read = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, read.get_field("general.architecture").contents())
    for field in read.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in read.tensors:
        kind = gguf.GGMLQuantizationType[precision.upper() if tensor.name.startswith("blk") else "Q8_0"]
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
