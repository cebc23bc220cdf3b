"""Time, memory and cost of a fine-tune before it starts, and the refusal of one that cannot fit into the memory.

Memory. Per weight: 2 bytes bf16 (0.52 in 4 bits with the scales), and for each trained one 12 (fp32 master and both
moments of AdamW); on top of them the larger of two moments of a step: 4 bytes fp32 gradient while the optimizer works,
or 2 bytes bf16 gradient (and the 4, if a step has several micro-batches) beside the activations of one micro-batch.
Merging adapters makes the blocks' weights a second time, in the processor's memory.

A layer of the Llama family keeps for each token, in bytes (h hidden, q query, k key, f feed-forward width): 16 h + 4 q
+ 4 k + 8 f; short rows on a CPU also 6 for each head and key; each target 10 a vocabulary entry. Checkpointed layers
keep 2 h each, and one of them all. The formula is within 3 % of `torch.autograd.graph.saved_tensors_hooks`, within
10 % for adapters.

Time. Tokens over the tokens a second of an earlier run with the same base and method, or of its first steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from smallfirst.base.errors import TrainingError
from smallfirst.base.records import Record
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.training.batches import LOSS_TARGETS, TokenizedRow, epoch_batches, micro_batches
from smallfirst.training.config import TrainConfig, epoch_seed, parse_duration
from smallfirst.training.hardware import FreeMemory, free_memory

SHORT_TOKENS = 256
"""Rows up to this long keep their attention weights on a CPU (`models.local.packed_rows` computes them itself)."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: itself, an 8-bit scale for 64 of them, an fp32 scale for 256 scales (Dettmers et al. 2023)."""
PROGRAM_BYTES = 600e6
"""The program itself: Python, PyTorch, MLflow."""
MIN_FACTOR, AT_MOST = 0.85, 1.3
"""The estimate times these is what a run takes at least, and nearly always at most: freed memory is kept in pieces."""
TIME_RANGE = 1.3
"""The time divided and multiplied by this."""
READ_SHARE = 1 / 3
"""Of the time of a trained token, what a token takes that is read in validation: the backward pass is two of three."""
WRITTEN_FACTOR = 8.0
"""A token written in validation takes so many times as long as one that is read: 7 to 9 times in two runs."""


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


class TrainingEstimate(Record):
    """What a fine-tune takes."""

    base: str
    parameters: int
    trained: int
    method: str
    epochs: float
    """How often each row is read."""
    steps: int
    tokens: int
    """Tokens trained on over all epochs, padding not counted."""
    seconds: Range
    """Wall-clock time, validation included."""
    pace: str
    """How the speed is known."""
    memory_bytes: Range
    """At the peak, the program included."""
    least_bytes: float
    """The least it can take; if more than is free, it cannot run."""
    free_bytes: int | None = None
    """Free memory without swap; None if unknown."""
    cost_usd: Range | None = None
    """At the machine's price an hour; None if the task file sets none."""

    @property
    def _gigabytes(self) -> str:
        return f"{self.memory_bytes.low / 1e9:.1f} to {self.memory_bytes.high / 1e9:.1f} GB"

    @property
    def short_summary(self) -> str:
        return f"about {format_seconds(self.seconds)}, {self._gigabytes}"

    @property
    def in_words(self) -> list[str]:
        trained = "" if self.trained == self.parameters else f", {_millions(self.trained)} of them trained"
        lines = [
            f"fine-tune of {self.base}: {self.method}, {_millions(self.parameters)} weights{trained}",
            f"  work    {self.tokens:,} tokens in {self.steps:,} steps, {self.epochs:.3g} epochs",
            f"  time    about {format_seconds(self.seconds)} ({self.pace})",
        ]
        free = "" if self.free_bytes is None else f"; {self.free_bytes / 1e9:.1f} GB is free"
        lines.append(f"  memory  about {self._gigabytes}{free}")
        if self.cost_usd is not None:
            lines.append(f"  cost    about ${self.cost_usd.low:.2g} to ${self.cost_usd.high:.2g}")
        return lines


class ValidationWork(NamedTuple):
    """Tokens of the validation after each epoch."""

    read_tokens: int
    written_tokens: int

    @property
    def as_trained(self) -> float:
        """Tokens that are trained on in the same time."""
        return READ_SHARE * (self.read_tokens + WRITTEN_FACTOR * self.written_tokens)


class Pace(NamedTuple):
    """How fast a fine-tune is."""

    tokens_per_s: float
    words: str
    """How it is known."""


def estimate_training(
    base: str,
    size: BaseSize,
    config: TrainConfig,
    rows: Sequence[TokenizedRow],
    validation: ValidationWork,
    pace: Pace,
    *,
    gpu: bool = False,
) -> TrainingEstimate:
    """Return what the fine-tune takes, without free memory and cost, which the caller adds.

    Early stopping lowers the low end of its time.
    """
    steps, tokens = len(first_epoch(rows, config)), sum(len(row.ids) - 1 for row in rows)
    epochs = count_epochs(config, steps, tokens)
    seconds = (epochs * tokens + max(1.0, epochs) * validation.as_trained) / pace.tokens_per_s
    shortest = min(1.0, (config.patience + 1) / epochs) if config.patience else 1.0
    top = expected_memory(size, config, rows, gpu=gpu)
    return TrainingEstimate(
        base=base,
        parameters=size.parameters,
        trained=round(trainable_parameters(size, config)),
        method=config.method,
        epochs=epochs,
        steps=max(1, round(epochs * steps)),
        tokens=round(epochs * tokens),
        seconds=Range(low=shortest * seconds / TIME_RANGE, high=seconds * TIME_RANGE),
        pace=pace.words,
        memory_bytes=top.span,
        least_bytes=top.at_least,
    )


def count_epochs(config: TrainConfig, steps: int, tokens: int) -> float:
    """Return how many epochs of so many steps and tokens the duration makes."""
    duration = parse_duration(config.duration)
    return duration.amount / {"ep": 1, "ba": steps, "tok": tokens}[duration.unit]


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


def expected_memory(size: BaseSize, config: TrainConfig, rows: Sequence[TokenizedRow], *, gpu: bool) -> PeakMemory:
    """Return the peak of a run on these rows."""
    read, several = largest_micro_batch(rows, size, config, gpu=gpu)
    return peak_memory(size, config, read, gpu=gpu, several=several)


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


def require_memory(base: tuple[str, Path], config: TrainConfig) -> None:
    """Raise TrainingError if even the least that the fine-tune of `base` (name and folder) can take is not free."""
    size, free = read_base_size(base[1]), free_memory()
    if size is None or free is None:
        return
    need = least_bytes(size, config, gpu=free.gpu)
    if need > free.bytes + free.swap:
        raise TrainingError(
            f"{config.method} fine-tune of {base[0]} ({size.parameters / 1e6:,.0f} M weights) needs at least "
            f"{format_gigabytes(need)} of {free.name}, {format_gigabytes(free.bytes + free.swap)} is free",
            hint=suggest_smaller_setting(size, config, free),
        )


def needs_checkpointing(size: BaseSize | None, config: TrainConfig, rows: Sequence[TokenizedRow]) -> bool:
    """Return whether a run whose weights are loaded needs checkpointed layers to fit into the memory that is free."""
    free = free_memory() if config.gradient_checkpointing is None else None
    if size is None or free is None:
        return bool(config.gradient_checkpointing)
    peak = expected_memory(size, config, rows, gpu=free.gpu)
    return peak.weights - base_bytes(size, config) + AT_MOST * peak.read > free.bytes


def fits_in_fp32(size: BaseSize | None, config: TrainConfig, rows: Sequence[TokenizedRow]) -> bool:
    """Return whether a run of which every weight is trained, loaded in bf16, clearly fits into the memory in fp32.

    Weights, gradients and activations are twice as wide then; during a validation the weights are there in bf16 too.
    """
    free = free_memory()
    if size is None or free is None or config.method != "full":
        return False
    peak = expected_memory(size, config, rows, gpu=free.gpu)
    wider = 2 * base_bytes(size, config) + 2 * trainable_parameters(size, config) + peak.read
    return peak.weights - base_bytes(size, config) + AT_MOST * (peak.read + wider) < free.bytes


def least_bytes(size: BaseSize, config: TrainConfig, *, gpu: bool = False) -> float:
    """Return the least a fine-tune can take, whatever its rows: weights, masters, moments and gradients."""
    return peak_memory(size, config, MicroBatchShape(0, 0, 0), gpu=gpu).at_least


def format_gigabytes(n_bytes: float) -> str:
    """Format a size in GB of 10⁹ bytes, in two or three digits."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 1e10 else f"{n_bytes / 1e9:,.0f} GB"


def suggest_smaller_setting(size: BaseSize, config: TrainConfig, free: FreeMemory) -> str:
    """Describe the nearest setting under which a fine-tune that is too large may fit."""
    methods: tuple[Literal["lora", "qlora"], ...] = ("lora", "qlora")
    for method in methods if size.causal else ():
        need = least_bytes(size, config.model_copy(update={"method": method}), gpu=free.gpu)
        if method != config.method and need <= free.bytes + free.swap:
            return f"method: {method} (rank {config.lora_rank}) under training: needs at least {format_gigabytes(need)}"
    a_weight = {"full": 18.0, "qlora": NF4_BYTES}.get(config.method, 2.0)
    return f"a smaller base model: {(free.bytes + free.swap) / a_weight / 1e6:,.0f} M weights at most would fit"


def format_seconds(span: Range) -> str:
    """Return a time that is known roughly in words: `85 s to 3.5 min`."""
    low, high = _time(span.low), _time(span.high)
    if low == high:
        return high
    unit = " " + high.split()[1]
    return f"{low.removesuffix(unit)} to {high}"


def _millions(n: float) -> str:
    return f"{n / 1e6:,.0f} M" if n >= 1e7 else f"{n / 1e6:.2g} M"


def _time(seconds: float) -> str:
    units = (("h", 3600), ("min", 60), ("s", 1))
    unit, length = next(((name, n) for name, n in units if seconds >= 1.5 * n), units[-1])
    return f"{_rounded(seconds / length)} {unit}"


def _rounded(value: float) -> str:
    if value < 10:
        return f"{max(1.0, value):.2g}"
    return f"{5 * round(value / 5):,}" if value < 100 else f"{round(value, -1):,.0f}"
