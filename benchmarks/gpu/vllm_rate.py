"""How fast one vLLM on a GPU answers for many adapters over one base, beside published figures.

    python -m benchmarks.gpu.vllm_rate WEIGHTS --url URL [--adapters 4] [--clients 128] [--seconds 60] [--labels 20]

WEIGHTS is any folder of a causal model (config.json, safetensors, tokenizer), URL the address of a vLLM
over it, started as docs/beyond.md says, with `--max-loras 4`. Adapters of rank 16 with random weights are made here, so nothing has to be trained. Two loads: prompts of
300 tokens of which the label probabilities are read, and prompts of 256 tokens answered with 128. The verdict compares
the rate with the figures in PUBLISHED where the GPU and the size of the model are theirs. With `--toy` it only shows
that it works, on a processor too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.models.remote.config import VllmServer
from smallfirst.models.servers.vllm import VllmRoute

LABEL_PROMPT, PROMPT, ANSWER = 300, 256, 128
"""Tokens of a prompt to label, of one to answer, and of its answer."""
FIRST_TOKEN = 1000
"""Prompts are drawn from the tokens after the special ones."""


class Published(NamedTuple):
    """A figure of others, for one H100."""

    what: str
    value: float
    billions: tuple[float, float]
    """Parameters of the models that it may be compared with, in billions: from, to."""
    source: str


PUBLISHED = {
    "labels": Published(
        "items/s, Qwen3-0.6B, 300 tokens in, p99 below 500 ms", 1000, (0.4, 0.8), "SGLang pull request 9748, 2025"
    ),
    "answers": Published(
        "generated tokens/s, Llama 3.1 8B in bf16, without adapters", 12_500, (7, 9), "morphllm.com, 2026-04-05"
    ),
}


def write_adapter(base: Path, folder: Path, seed: int, rank: int = 16) -> Path:
    """Write an adapter of random weights on the attention of every layer, as peft would."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    widths = {"q_proj": heads * head, "v_proj": config.get("num_key_value_heads", heads) * head}
    torch.manual_seed(seed)
    weights = {}
    for layer, (name, width) in itertools.product(range(config["num_hidden_layers"]), widths.items()):
        place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
        weights[f"{place}.lora_A.weight"] = torch.randn(rank, hidden, dtype=torch.bfloat16) / hidden**0.5
        weights[f"{place}.lora_B.weight"] = torch.randn(width, rank, dtype=torch.bfloat16) * 0.01
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(widths)}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def billions(base: Path) -> float:
    """Parameters of a folder of 16-bit weights, from its size."""
    return sum(path.stat().st_size for path in base.glob("*.safetensors")) / 2e9


async def load(
    routes: list[VllmRoute], clients: int, seconds: float, body: Callable[[], dict[str, Any]]
) -> tuple[float, list[float]]:
    """Requests/s of a closed loop over all adapters in turn, and each request's seconds."""
    turns, took, until = itertools.cycle(routes), [], time.perf_counter() + seconds

    async def client() -> None:
        while (began := time.perf_counter()) < until:
            async with next(turns).post("", body()) as (response, _):
                await response.read()
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(took) / (time.perf_counter() - began), sorted(took)


async def measure(routes: list[VllmRoute], wanted: argparse.Namespace, vocabulary: int) -> dict[str, dict[str, float]]:
    labels = random.Random(1).sample(range(FIRST_TOKEN, vocabulary), wanted.labels)
    short, n_written = wanted.toy, ANSWER // 16 if wanted.toy else ANSWER

    def prompt(n: int) -> list[int]:
        return [random.randrange(FIRST_TOKEN, vocabulary) for _ in range(n // 8 if short else n)]

    def label() -> dict[str, Any]:
        own = {"max_tokens": 1, "logprobs": 1, "logprob_token_ids": labels}
        return {"prompt": prompt(LABEL_PROMPT), "temperature": 0, **own}

    def answer() -> dict[str, Any]:
        return {"prompt": prompt(PROMPT), "temperature": 0, "max_tokens": n_written} | {"ignore_eos": True}

    found = {}
    bodies: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {"labels": (label, 1), "answers": (answer, n_written)}
    for name, (body, n_tokens) in bodies.items():
        await load(routes, wanted.clients, 1 if short else 10, body)  # loads the adapters, and compiles
        rate, took = await load(routes, wanted.clients, wanted.seconds, body)
        at = {p: took[int(p / 100 * (len(took) - 1))] for p in (50, 95, 99)}
        found[name] = {"requests_per_s": rate, "tokens_per_s": rate * n_tokens, "n": len(took)}
        found[name] |= {f"p{p}_ms": 1000 * seconds for p, seconds in at.items()}
    return found


def verdict(name: str, found: dict[str, float], size: float, gpu: str) -> str:
    """One line: faster or slower than the published figure, or why it is not compared."""
    published, rate = PUBLISHED[name], found["tokens_per_s"]
    from_, to = published.billions
    if not from_ <= size <= to or "H100" not in gpu:
        return f"{name}: {rate:,.0f}/s; not compared with {published.value:,.0f} ({published.what}; {published.source})"
    word = "reaches" if rate >= published.value else "misses"
    return f"{name}: {rate:,.0f}/s {word} {published.value:,.0f} ({published.what}; {published.source})"


def gpu_name() -> str:
    try:
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    except ImportError:
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--toy", action="store_true", help="prompts of an eighth, answers of a sixteenth")
    wanted = parser.parse_args()
    vocabulary = json.loads((wanted.weights / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with tempfile.TemporaryDirectory() as place:
        server = VllmServer(url=wanted.url, slots=wanted.clients)
        folders = [write_adapter(wanted.weights, Path(place) / f"adapter-{i}", i) for i in range(wanted.adapters)]
        routes = [VllmRoute(server, name=folder.name, weights=folder, adapter=True) for folder in folders]

        async def run() -> dict[str, dict[str, float]]:
            try:
                return await measure(routes, wanted, vocabulary)
            finally:
                for route in routes:
                    await route.aclose()

        found = asyncio.run(run())
    size, gpu = billions(wanted.weights), gpu_name()
    print(
        f"{wanted.weights.name}, {size:.2f} B parameters, {wanted.adapters} adapters, {wanted.clients} clients, {gpu}"
    )
    for name, one in found.items():
        print(f"  {name}: " + ", ".join(f"{key} {value:,.1f}" for key, value in one.items()))
        print("  " + verdict(name, one, size, gpu))


if __name__ == "__main__":
    main()
