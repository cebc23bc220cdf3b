"""Print the requests/s that the processor's bf16 matrix rate allows if prompts are read whole and nothing else takes time.

    python -m benchmarks.serving.bound MODEL MEAN_TOKENS

Prints one JSON object: the rate on large square matrices (the best measured on this processor) and at the model's
own shapes with 32 prompts together, in GFLOP/s, and the requests/s that each allows: rate / (2 x weights outside the
embedding x tokens of a prompt). Work that grows with the prompt's square (attention) is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import linear

SECONDS = 1.5
AT_ONCE = 32


def rate(shapes: list[tuple[int, int]], rows: int) -> float:
    """Return FLOP/s of multiplying `rows` vectors by matrices of these shapes (out, in), one after another."""
    pairs = [(torch.randn(rows, n, dtype=torch.bfloat16), torch.randn(m, n, dtype=torch.bfloat16)) for m, n in shapes]
    for a, weight in pairs:
        linear(a, weight)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        for a, weight in pairs:
            linear(a, weight)
        count += 1
    return count * sum(2 * rows * m * n for m, n in shapes) / (time.perf_counter() - began)


def layer_shapes(config: dict[str, int]) -> list[tuple[int, int]]:
    """Return the shapes of the matrices of one layer of a Llama model."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    return [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), *[(inner, hidden)] * 2, (hidden, inner)]


def main() -> None:
    config = json.loads((Path(sys.argv[1]) / "config.json").read_text())
    tokens = float(sys.argv[2])
    shapes = layer_shapes(config)
    weights = config["num_hidden_layers"] * sum(m * n for m, n in shapes)
    with torch.inference_mode():
        square, own = rate([(2048, 2048)], 2048), rate(shapes, round(AT_ONCE * tokens))
    bound = {name: found / (2 * weights * tokens) for name, found in (("square", square), ("model", own))}
    print(json.dumps({"square_gflops": square / 1e9, "model_gflops": own / 1e9, "weights": weights, "bound": bound}))


if __name__ == "__main__":
    main()
