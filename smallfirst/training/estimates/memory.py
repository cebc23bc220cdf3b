"""How much memory a fine-tune takes at its peak, and the refusal of one that cannot fit.

Per weight: 2 bytes bf16, and for each that is trained 4 (fp32 master) + 8 (both moments of AdamW), always there; on top
of them the larger of two moments of a step: 4 bytes fp32 gradient while the optimizer works, or 2 bytes bf16 gradient
(and the 4, if a step reads several micro-batches) beside what the backward pass keeps of one read. Adapters are folded
into an fp32 copy of the whole model when it is saved: 4 bytes a weight, whatever was trained. What frozen layers make
of the rows stays: 2 h bytes for each token of all of them.

Of one read, a layer of the Llama family keeps for each token, in bytes (h hidden, q query, k key, f feed-forward
width): 16 h + 4 q + 4 k + 8 f, that is bf16 inputs of every matrix product, queries, keys, values, four feed-forward
products and two norms with their fp32 inputs. Rows of up to 256 tokens on a CPU also keep their attention weights, 6
bytes for each head and token looked at; longer ones and GPUs compute them again. Each target keeps 4 bytes a vocabulary
entry and takes 6 more for a moment. Counted with `torch.autograd.graph.saved_tensors_hooks` the formula is within 3 %
(tests/training/test_memory.py), and within 10 % for adapters; DoRA keeps 1.6 to 2 times as much.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset
from smallfirst.errors import TrainingError
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.records import Record
from smallfirst.training.batches import TokenizedRow, epoch_batches, micro_batches
from smallfirst.training.config import TrainConfig, epoch_seed
from smallfirst.training.estimates.hardware import FreeMemory, free_memory

SHORT_TOKENS = 256
"""Rows up to this long keep their attention weights on a CPU (`models.attention` computes them itself)."""
DORA_MEMORY_FACTOR = 1.8
"""What DoRA keeps over what LoRA keeps."""
PROGRAM_BYTES = 600e6
"""The program itself: Python, PyTorch, MLflow."""
MIN_FACTOR, AT_MOST = 0.85, 1.3
"""The estimate times these is what a run takes at least, and nearly always at most: freed memory is kept in pieces."""
MAX_BYTES_PER_TOKEN = 8
"""Text of fewer bytes makes at least one token more, nearly always."""
MIN_BATCH_FILL = 0.75
"""The fullest batch is at least so full."""


class Range(Record):
    """A figure that is known only roughly."""

    low: float
    """Hardly less."""
    high: float
    """Hardly more."""

    def times(self, factor: float) -> Range:
        """Both ends multiplied."""
        return Range(low=self.low * factor, high=self.high * factor)


class MicroBatchShape(NamedTuple):
    """Rows read side by side."""

    rows: int
    width: int
    """Tokens of the longest."""
    targets: int
    """Tokens to be predicted."""


class PeakMemory(NamedTuple):
    """Bytes at the peak, in its two parts."""

    weights: float
    """Of weights, masters, moments and gradients."""
    read: float
    """Kept of one read for the backward pass."""

    @property
    def at_least(self) -> float:
        """Less would not do."""
        return self.weights + MIN_FACTOR * self.read

    @property
    def span(self) -> Range:
        """What a run takes, the program included."""
        return Range(low=self.at_least + PROGRAM_BYTES / 2, high=AT_MOST * (self.weights + self.read) + PROGRAM_BYTES)


def trainable_parameters(size: BaseSize, config: TrainConfig) -> float:
    """How many weights move."""
    upper = 1 - min(1.0, config.frozen_layers / size.layers)
    if config.method != "full":
        return config.lora_rank * size.linear_ends * upper
    return size.body * upper + size.head if config.frozen_layers else size.parameters


def activation_bytes(size: BaseSize, config: TrainConfig, read: MicroBatchShape, *, gpu: bool) -> float:
    """What the backward pass keeps of one read; 0 for an encoder, whose formula is another and whose share is small."""
    if not size.causal:
        return 0.0
    layers = size.layers - min(size.layers, config.frozen_layers)
    token = 16 * size.hidden + 4 * size.query + 4 * size.key_value + 8 * size.inner
    if not gpu and read.width <= SHORT_TOKENS:
        token += 6 * size.heads * read.width
    body = layers * token * (DORA_MEMORY_FACTOR if config.method == "dora" else 1.0)
    return read.rows * read.width * body + read.targets * 10 * size.vocabulary


def peak_memory(
    size: BaseSize,
    config: TrainConfig,
    read: MicroBatchShape,
    *,
    in_all: float = 0,
    gpu: bool = False,
    several: bool = False,
) -> PeakMemory:
    """The peak of a run whose largest read is this one; `several`: a step is more than one read.

    `in_all`: tokens of all rows, which count where frozen layers keep what they made of them.
    """
    trained, width = trainable_parameters(size, config), 2 if size.causal else 4
    always = width * size.parameters + 12 * trained
    if config.frozen_layers:
        always += 2 * size.hidden * in_all
    kept = activation_bytes(size, config, read, gpu=gpu)
    working, reading = 4 * trained, (width + (4 if several else 0)) * trained
    saving = 0.0 if config.method == "full" else 4.0 * size.parameters
    if reading + kept >= max(working, saving):
        return PeakMemory(always + reading, kept)
    return PeakMemory(always + max(working, saving), 0.0)


def largest_micro_batch(
    rows: Sequence[TokenizedRow], size: BaseSize, config: TrainConfig, *, gpu: bool = False
) -> tuple[MicroBatchShape, bool]:
    """The read that keeps most in the first epoch, and whether any step is more than one read."""
    reads, several = [MicroBatchShape(0, 0, 0)], False
    for batch in epoch_batches(rows, batch_tokens=config.batch_tokens, seed=epoch_seed(config, 0)):
        parts = micro_batches(batch, config.micro_tokens or config.batch_tokens)
        several = several or len(parts) > 1
        reads += [micro_batch_shape(part) for part in parts]
    return max(reads, key=lambda read: activation_bytes(size, config, read, gpu=gpu)), several


def micro_batch_shape(rows: Sequence[TokenizedRow]) -> MicroBatchShape:
    """Rows, width and targets of what is read at once."""
    return MicroBatchShape(
        rows=len(rows),
        width=max(len(row.ids) - 1 for row in rows),
        targets=sum(len(row.ids) - row.n_prompt for row in rows),
    )


def require_memory(base: tuple[str, Path], config: TrainConfig, rows: Dataset) -> None:
    """Nothing back if the fine-tune of `base` (name and folder) on `rows` may fit into what is free now.

    Only what it takes at the very least is compared, so that a run that would fit is not refused. Raises TrainingError
    with the need, what is free, and what would fit.
    """
    size, free = read_base_size(base[1]), free_memory()
    # Processes of one run may share a model between them.
    if size is None or free is None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    need = least_bytes(size, config, rows, gpu=free.gpu)
    if need > free.bytes + free.swap:
        raise TrainingError(
            f"{config.method} fine-tune of {base[0]} ({size.parameters / 1e6:,.0f} M weights) needs at least "
            f"{format_gigabytes(need)} of {free.name}, {format_gigabytes(free.bytes + free.swap)} is free",
            hint=suggest_smaller_setting(size, config, rows, free),
        )


def least_bytes(size: BaseSize, config: TrainConfig, rows: Dataset, *, gpu: bool = False) -> float:
    """What a fine-tune takes at the very least, before its rows are put into tokens.

    What rows begin with alike may be read once for all of them, so only what tells them apart is counted.
    """
    texts = ["\0".join([*(m.content for m in e.messages), e.answer]) for e in rows.examples]
    in_all = sum(len(text.encode()) for text in texts) / MAX_BYTES_PER_TOKEN
    limit = config.micro_tokens or config.batch_tokens
    n_tokens = int(min(MIN_BATCH_FILL * limit, in_all) * _own_share(texts))
    several = limit < min(config.batch_tokens, in_all)
    return peak_memory(size, config, MicroBatchShape(n_tokens, 1, 0), in_all=in_all, gpu=gpu, several=several).at_least


def _own_share(texts: Sequence[str]) -> float:
    """Share of all characters that no text before it, in alphabetical order, begins with."""
    ordered = sorted(texts)
    alike = sum(_alike(a, b) for a, b in pairwise(ordered))
    return 1 - alike / max(1, sum(map(len, ordered)))


def _alike(a: str, b: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def format_gigabytes(n_bytes: float) -> str:
    """A size in GB of 10⁹ bytes, in two or three digits."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 1e10 else f"{n_bytes / 1e9:,.0f} GB"


def suggest_smaller_setting(size: BaseSize, config: TrainConfig, rows: Dataset, free: FreeMemory) -> str:
    """The nearest setting under which a fine-tune that is too large may fit, in words."""
    ways: list[tuple[str, dict[str, Any]]] = []
    if size.causal:
        ways.append(("micro_tokens: 256 (the same model, read in smaller parts)", {"micro_tokens": 256}))
        ways.append((f"method: lora (rank {config.lora_rank})", {"method": "lora"}))
        ways.append(("method: lora with micro_tokens: 256", {"method": "lora", "micro_tokens": 256}))
    for words, change in ways:
        less = config.model_copy(update=change)
        need = least_bytes(size, less, rows, gpu=free.gpu)
        if less != config and need <= free.bytes + free.swap:
            return f"{words} under training: needs at least {format_gigabytes(need)}"
    a_weight = 18 if config.method == "full" else 6
    return f"a smaller base model: {(free.bytes + free.swap) / a_weight / 1e6:,.0f} M weights at most would fit"
