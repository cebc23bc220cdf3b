"""Estimate the peak memory of a fine-tune, and refuse one that cannot fit.

Per weight: 2 bytes bf16 (0.52 in 4 bits with the scales), and for each trained one 12 (fp32 master and both moments of
AdamW); on top of them the larger of two moments of a step: 4 bytes fp32 gradient while the optimizer works, or 2 bytes
bf16 gradient (and the 4, if a step has several micro-batches) beside the activations of one micro-batch. Merging
adapters makes the blocks' weights a second time, in the processor's memory.

A layer of the Llama family keeps for each token, in bytes (h hidden, q query, k key, f feed-forward width): 16 h + 4 q
+ 4 k + 8 f; short rows on a CPU also 6 for each head and key; each target 10 a vocabulary entry. Checkpointed layers
keep 2 h each, and one of them all. The formula is within 3 % of `torch.autograd.graph.saved_tensors_hooks`, within
10 % for adapters.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset
from smallfirst.errors import TrainingError
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.records import Record
from smallfirst.training.batches import LOSS_TARGETS, TokenizedRow, epoch_batches, micro_batches
from smallfirst.training.config import TrainConfig, epoch_seed
from smallfirst.training.estimates.hardware import FreeMemory, free_memory

SHORT_TOKENS = 256
"""Rows up to this long keep their attention weights on a CPU (`models.attention` computes them itself)."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: itself, an 8-bit scale for 64 of them, an fp32 scale for 256 scales (Dettmers et al. 2023)."""
PROGRAM_BYTES = 600e6
"""The program itself: Python, PyTorch, MLflow."""
MIN_FACTOR, AT_MOST = 0.85, 1.3
"""The estimate times these is what a run takes at least, and nearly always at most: freed memory is kept in pieces."""
MAX_BYTES_PER_TOKEN = 8
"""Text of fewer bytes makes at least one token more, nearly always."""
MIN_BATCH_FILL = 0.75
"""The fullest batch is at least so full."""


class Range(Record):
    """A number that is known only roughly."""

    low: float
    """Hardly less."""
    high: float
    """Hardly more."""

    def times(self, factor: float) -> Range:
        return Range(low=self.low * factor, high=self.high * factor)


class MicroBatchShape(NamedTuple):
    """The size of a micro-batch."""

    rows: int
    width: int
    """Tokens of the longest."""
    targets: int


class PeakMemory(NamedTuple):
    """Bytes at the peak, in two parts."""

    weights: float
    """Of weights, masters, moments and gradients."""
    read: float
    """Kept of one read for the backward pass."""

    @property
    def at_least(self) -> float:
        return self.weights + MIN_FACTOR * self.read

    @property
    def span(self) -> Range:
        return Range(low=self.at_least + PROGRAM_BYTES / 2, high=AT_MOST * (self.weights + self.read) + PROGRAM_BYTES)


def trainable_parameters(size: BaseSize, config: TrainConfig) -> float:
    """Return how many weights are trained."""
    return size.parameters if config.method == "full" else config.lora_rank * size.linear_ends


def activation_bytes(size: BaseSize, config: TrainConfig, read: MicroBatchShape, *, gpu: bool) -> float:
    """Return what the backward pass keeps of one micro-batch; 0 for an encoder, whose share is small."""
    if not size.causal:
        return 0.0
    layers = size.layers
    token: float = 16 * size.hidden + 4 * size.query + 4 * size.key_value + 8 * size.inner
    if not gpu and read.width <= SHORT_TOKENS:
        token += 6 * size.heads * read.width
    body = layers * 2 * size.hidden + token if config.gradient_checkpointing else layers * token
    return read.rows * read.width * body + min(read.targets, LOSS_TARGETS) * 10 * size.vocabulary


def base_bytes(size: BaseSize, config: TrainConfig) -> float:
    """Return what the weights take as they are read in training."""
    if config.method == "qlora":
        return 2 * (size.parameters - size.body) + NF4_BYTES * size.body
    return (2 if size.causal else 4) * size.parameters


def peak_memory(
    size: BaseSize,
    config: TrainConfig,
    read: MicroBatchShape,
    *,
    gpu: bool = False,
    several: bool = False,
) -> PeakMemory:
    """Return the peak of a run, `read` its largest micro-batch; `several`: a step has more."""
    trained, width = trainable_parameters(size, config), 2 if size.causal else 4
    always = base_bytes(size, config) + 12 * trained
    kept = activation_bytes(size, config, read, gpu=gpu)
    working, reading = 4 * trained, (width + (4 if several else 0)) * trained
    merges = config.method != "full" and config.adapters == "merged" and not gpu
    saving = 2.0 * size.body if merges else 0.0
    if reading + kept >= max(working, saving):
        return PeakMemory(always + reading, kept)
    return PeakMemory(always + max(working, saving), 0.0)


def largest_micro_batch(
    rows: Sequence[TokenizedRow], size: BaseSize, config: TrainConfig, *, gpu: bool = False
) -> tuple[MicroBatchShape, bool]:
    """Return the micro-batch that keeps most in the first epoch, and whether any step has more than one."""
    steps = first_epoch(rows, config)
    largest = max(chain(*steps), key=lambda read: activation_bytes(size, config, read, gpu=gpu))
    return largest, any(len(step) > 1 for step in steps)


def first_epoch(rows: Sequence[TokenizedRow], config: TrainConfig) -> list[list[MicroBatchShape]]:
    """Return the micro-batches of each step of the first epoch, batched as in training."""
    batches = epoch_batches(rows, batch_tokens=config.batch_tokens, seed=epoch_seed(config, 0))
    limit = config.micro_tokens or config.batch_tokens
    return [
        [
            MicroBatchShape(len(part), max(len(r.ids) - 1 for r in part), sum(len(r.ids) - r.n_prompt for r in part))
            for part in micro_batches(batch, limit)
        ]
        for batch in batches
    ]


def require_memory(base: tuple[str, Path], config: TrainConfig, rows: Dataset) -> None:
    """Raise TrainingError if even the least that the fine-tune of `base` (name and folder) can take is not free."""
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


def needs_checkpointing(size: BaseSize | None, config: TrainConfig, rows: Sequence[TokenizedRow]) -> bool:
    """Return whether a run whose weights are loaded needs checkpointed layers to fit into the memory that is free."""
    free = free_memory() if config.gradient_checkpointing is None else None
    if size is None or free is None:
        return bool(config.gradient_checkpointing)
    read, several = largest_micro_batch(rows, size, config, gpu=free.gpu)
    peak = peak_memory(size, config, read, gpu=free.gpu, several=several)
    return peak.weights - base_bytes(size, config) + AT_MOST * peak.read > free.bytes


def fits_in_fp32(size: BaseSize | None, config: TrainConfig, rows: Sequence[TokenizedRow]) -> bool:
    """Return whether a run of which every weight is trained, loaded in bf16, clearly fits into the memory in fp32.

    Weights, gradients and activations are twice as wide then; during a validation the weights are there in bf16 too.
    """
    free = free_memory()
    if size is None or free is None or config.method != "full":
        return False
    read, several = largest_micro_batch(rows, size, config, gpu=free.gpu)
    peak = peak_memory(size, config, read, gpu=free.gpu, several=several)
    wider = 2 * base_bytes(size, config) + 2 * trainable_parameters(size, config) + peak.read
    return peak.weights - base_bytes(size, config) + AT_MOST * (peak.read + wider) < free.bytes


def least_bytes(size: BaseSize, config: TrainConfig, rows: Dataset, *, gpu: bool = False) -> float:
    """Return the least a fine-tune can take before its rows are tokenized; a common prefix is counted once."""
    if config.gradient_checkpointing is None:  # they are checkpointed if they would not fit otherwise
        config = config.model_copy(update={"gradient_checkpointing": True})
    texts = ["\0".join([*(m.content for m in e.messages), e.answer]) for e in rows.examples]
    in_all = sum(len(text.encode()) for text in texts) / MAX_BYTES_PER_TOKEN
    limit = config.micro_tokens or config.batch_tokens
    n_tokens = int(min(MIN_BATCH_FILL * limit, in_all) * _own_share(texts))
    several = limit < min(config.batch_tokens, in_all)
    return peak_memory(size, config, MicroBatchShape(n_tokens, 1, 0), gpu=gpu, several=several).at_least


def _own_share(texts: Sequence[str]) -> float:
    """Return the share of all characters that are not a prefix shared with the row before in alphabetical order."""
    ordered = sorted(texts)
    alike = sum(
        bisect_left(range(1, min(len(a), len(b)) + 1), True, key=lambda n: a[:n] != b[:n]) for a, b in pairwise(ordered)
    )
    return 1 - alike / max(1, sum(map(len, ordered)))


def format_gigabytes(n_bytes: float) -> str:
    """Format a size in GB of 10⁹ bytes, in two or three digits."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 1e10 else f"{n_bytes / 1e9:,.0f} GB"


def suggest_smaller_setting(size: BaseSize, config: TrainConfig, rows: Dataset, free: FreeMemory) -> str:
    """Describe the nearest setting under which a fine-tune that is too large may fit."""
    ways: list[tuple[str, dict[str, Any]]] = []
    if size.causal:
        ways.append(("micro_tokens: 256 (the same model, read in smaller parts)", {"micro_tokens": 256}))
        ways.append(
            ("gradient_checkpointing: true (the same model, a third more work)", {"gradient_checkpointing": True})
        )
        ways.append((f"method: lora (rank {config.lora_rank})", {"method": "lora"}))
        least = {"micro_tokens": 256, "gradient_checkpointing": True}
        words = "with micro_tokens: 256 and gradient_checkpointing: true"
        ways += [(f"method: {method} {words}", {"method": method, **least}) for method in ("lora", "qlora")]
    for words, change in ways:
        less = config.model_copy(update=change)
        need = least_bytes(size, less, rows, gpu=free.gpu)
        if less != config and need <= free.bytes + free.swap:
            return f"{words} under training: needs at least {format_gigabytes(need)}"
    a_weight = {"full": 18.0, "qlora": NF4_BYTES}.get(config.method, 2.0)
    return f"a smaller base model: {(free.bytes + free.swap) / a_weight / 1e6:,.0f} M weights at most would fit"
