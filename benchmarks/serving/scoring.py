"""Measure label scoring: requests/s, share of the prefill bound, and the ratio to generating the label.

    python -m benchmarks.serving.scoring MODEL_FOLDER ROWS.jsonl [n]

Side by side in one run, medians of three: label scoring (one forward pass, code tokens), the project's own generator and
transformers' generate writing as many tokens as the label's text has. The bound is what the machine's measured bf16
matrix rate would give if the prompt's tokens cost nothing but their multiplications (2 FLOPs a weight and token,
embedding left out). Scoring the tree of the labels' own texts, as for an untouched model, is timed as well.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.label_trie import TrieScorer
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.manifest import read_manifest

LABEL_TOKENS = 6
"""Mean length of a Banking77 label in tokens, end token included."""


def matrix_rate(seconds: float = 2.0) -> float:
    """Return the measured bf16 matrix rate in FLOP/s on a shape typical of the model."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    n, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ b
        n += 1
    return n * 2 * 2048**3 / (time.perf_counter() - began)


def rate(work: Callable[[], object], n: int, repeats: int = 3) -> float:
    """Return the median requests/s of `work`, which answers n requests."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(n / (time.perf_counter() - began))
    return statistics.median(found)


def main() -> None:
    folder, rows = Path(sys.argv[1]), Path(sys.argv[2])
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 512
    texts = [json.loads(line)["text"] for line in rows.open(encoding="utf-8")][:n]
    manifest = read_manifest(folder)
    scorer = LabelScorer.load(folder, manifest)
    prompts = [manifest.task.prompt(text) for text in texts]
    encoded = [encode_prompt(scorer.tokenizer, prompt, 512) for prompt in prompts]
    tokens = sum(map(len, encoded)) / len(encoded)
    weights = sum(p.numel() for name, p in scorer.model.named_parameters() if "embed" not in name)
    writer = Generator(scorer.model, scorer.tokenizer)
    scorer.score(texts[:64])
    peak = matrix_rate()
    bound = peak / (2 * weights * tokens)
    scored = rate(lambda: scorer.score(texts), n)
    asks = [GenerationRequest(ids, LABEL_TOKENS) for ids in encoded[: n // 4]]
    writer.end = -1  # as many tokens for every row, as generate writes
    written = rate(lambda: writer.generate(asks), len(asks))
    generated = rate(lambda: generate(scorer, encoded[: n // 4]), len(asks))
    tree = TrieScorer.fine_tuned(scorer.model, scorer.tokenizer, manifest.task)
    spelled = rate(lambda: tree.score(texts[: n // 8]), n // 8)
    peak = (peak + matrix_rate()) / 2
    print(f"prompts: {tokens:.1f} tokens on average, n = {n}; weights outside the embedding {weights / 1e6:.1f} M")
    print(f"bf16 matrix rate {peak / 1e9:.0f} GFLOP/s, so at most {bound:.0f} requests/s")
    print(f"label scoring           {scored:7.1f} requests/s  {scored / bound:.0%} of the bound")
    print(f"written, {LABEL_TOKENS} tokens        {written:7.1f} requests/s  ({scored / written:.1f} times slower)")
    print(f"tree of label texts     {spelled:7.1f} requests/s  ({scored / spelled:.1f} times slower, nothing trained)")
    print(f"transformers generate   {generated:7.1f} requests/s  ({scored / generated:.1f} times slower)")


def generate(scorer: LabelScorer, encoded: list[list[int]]) -> None:
    """Run transformers' greedy decoding of the same model, 32 rows at a time, sorted by length."""
    ordered = sorted(encoded, key=len)
    for start in range(0, len(ordered), 32):
        batch = ordered[start : start + 32]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            GENERIC.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=LABEL_TOKENS,
                min_new_tokens=LABEL_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )


if __name__ == "__main__":
    from transformers import AutoModelForCausalLM

    GENERIC = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    main()
