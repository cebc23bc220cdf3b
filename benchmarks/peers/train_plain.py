"""A plain PyTorch loop over a transformers model, the peer of benchmarks/training/steps.py.

    python -m benchmarks.peers.train_plain KIND BASE BATCHES.json fp32|bf16

Padded batches, PyTorch's attention, `torch.optim.AdamW` (fused), gradients clipped at 1; bf16 is autocast over fp32 weights.
KIND `encoder` has mean pooling and a linear head with cross-entropy, `language_model` next-token loss on the answer's tokens.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

SECONDS, MIN_STEPS = 5.0, 3


def main() -> None:
    kind, base, path, precision = sys.argv[1:]
    batches = json.loads(Path(path).read_text())
    auto = transformers.AutoModel if kind == "encoder" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(base, dtype=torch.float32).train()
    n_labels = 1 + max(row["label"] for batch in batches for row in batch)
    head = torch.nn.Linear(model.config.hidden_size, n_labels)
    weights = [*model.parameters(), *(head.parameters() if kind == "encoder" else ())]
    adam = torch.optim.AdamW(weights, lr=1e-5, fused=True)

    def loss(batch: list[dict[str, Any]]) -> torch.Tensor:
        width = max(len(row["ids"]) for row in batch)
        ids, mask, labels = (torch.full((len(batch), width), value) for value in (0, 0, -100))
        for i, row in enumerate(batch):
            n = len(row["ids"])
            ids[i, :n], mask[i, :n] = torch.tensor(row["ids"]), 1
            labels[i, row["n_prompt"] : n] = ids[i, row["n_prompt"] : n]
        if kind != "encoder":
            found: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            return found
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
        return F.cross_entropy(head(vectors), torch.tensor([row["label"] for row in batch]))

    began, tokens, steps = 0.0, 0, -1  # the first step warms up
    for batch in batches * 100:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            step_loss = loss(batch)
        step_loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        adam.zero_grad()
        steps += 1
        if steps == 0:
            began = time.perf_counter()
            continue
        tokens += sum(len(row["ids"]) for row in batch)
        if steps >= MIN_STEPS and time.perf_counter() - began >= SECONDS:
            break
    print(tokens / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
