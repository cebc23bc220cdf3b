"""Estimate time, memory and cost of a fine-tune before it starts, as ranges.

A trained weight takes 6 floating-point operations a token (Kaplan et al. 2020, section 2.1); under adapters the base's
weights take 4; checkpointed layers take 2 more. Attention adds 12 × layers × query width × length a token (Chowdhery et
al. 2022, appendix B), the output matrix its share at target tokens only. The speed is that of an earlier run with the
same base and method on this machine, else half of a matrix product's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from smallfirst.models.base_size import BaseSize
from smallfirst.records import Record
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.config import TrainConfig, parse_duration
from smallfirst.training.estimates.hardware import MatmulRate
from smallfirst.training.estimates.memory import (
    Range,
    first_epoch,
    largest_micro_batch,
    peak_memory,
    trainable_parameters,
)

EFFICIENCY = 0.5
"""Share of a matrix product's rate that a training step reaches."""
MEASURED_RANGE, EARLIER_RANGE = 1.5, 1.3
"""The time divided and multiplied by this, where the rate was measured now, and where an earlier run gave it."""
BUSY_FACTOR = 1.3
"""A machine that could be so many times as fast as it is now counts as busy."""
OPTIMIZER_BYTES, MEMORY_BYTES_PER_S = 40, 20e9
"""Read and written for each trained weight in a step, and how fast: the high end adds it, small batches feel it."""
GPU_WAIT_S = (0.3e-3, 1.5e-3)
"""For each layer and read."""
GENERATION_TIME_FACTOR = 8.0
"""A token generated in validation takes so many times as long as a prompt token: 7 to 9 times in two runs."""


class TrainingSpeed(NamedTuple):
    """Floating-point operations a second of a training step, all overhead included."""

    slow: float
    fast: float
    words: str
    """How it is known, in words."""
    measured: bool
    """True if it rests on a matrix product, False if on an earlier run, which includes all overhead."""
    gpu: bool = False


class ValidationWork(NamedTuple):
    """Tokens of the validation after each epoch."""

    read_tokens: int
    written_tokens: int


class EpochWork(NamedTuple):
    """The work of one epoch."""

    tokens: int
    """Real ones, padding not counted."""
    padded: int
    targets: int
    pairs: int
    """Rows times the square of their padded length: what attention looks at."""
    steps: int
    reads: int


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
    flops: float
    """Floating-point operations of training, padding included, validation not."""
    seconds: Range
    """Wall-clock time, validation included."""
    pace: str
    """How the speed is known."""
    memory_bytes: Range
    """At the peak, the program included."""
    least_bytes: float
    """The least it can take; if more than is free, it cannot run."""
    free_bytes: int | None
    """Free memory without swap; None if unknown."""
    cost_usd: Range | None
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


def epoch_work(rows: Sequence[TokenizedRow], config: TrainConfig) -> EpochWork:
    """Return the work of the first epoch."""
    steps = first_epoch(rows, config)
    reads = [*chain(*steps)]
    return EpochWork(
        tokens=sum(len(row.ids) - 1 for row in rows),
        padded=sum(read.rows * read.width for read in reads),
        targets=sum(read.targets for read in reads),
        pairs=sum(read.rows * read.width**2 for read in reads),
        steps=len(steps),
        reads=len(reads),
    )


def count_epochs(work: EpochWork, config: TrainConfig) -> float:
    """Return how many epochs the duration makes."""
    duration = parse_duration(config.duration)
    return duration.amount / {"ep": 1, "ba": work.steps, "tok": work.tokens}[duration.unit]


def train_flops(size: BaseSize, config: TrainConfig, work: EpochWork, epochs: float) -> float:
    """Return the floating-point operations of the whole run."""
    full = config.method == "full"
    again = 2 if config.gradient_checkpointing else 0
    token = (again + (6 if full else 4)) * size.body + (0 if full else 6 * trainable_parameters(size, config))
    attention = (12 + 2 * again) * size.layers * size.query * work.pairs
    head = (6 if full else 4) * size.vocabulary * size.hidden * work.targets
    return epochs * (token * work.padded + attention + head)


def answer_flops(size: BaseSize, asked: ValidationWork) -> float:
    """Return the floating-point operations of answering; those of written tokens count as many as they take time."""
    tokens = asked.read_tokens + GENERATION_TIME_FACTOR * asked.written_tokens
    return 2 * size.body * tokens + 2 * size.vocabulary * size.hidden * asked.written_tokens


def speed_from_earlier_run(
    tokens_per_s: float, size: BaseSize, config: TrainConfig, work: EpochWork, *, gpu: bool = False
) -> TrainingSpeed:
    """Return the speed of an earlier run with the same base and method, from its tokens a second."""
    rate = tokens_per_s * train_flops(size, config, work, 1.0) / max(1, work.tokens)
    words = f"an earlier run read {tokens_per_s:,.0f} tokens/s"
    return TrainingSpeed(rate / EARLIER_RANGE, rate * EARLIER_RANGE, words, measured=False, gpu=gpu)


def speed_from_matmul(rate: MatmulRate, *, gpu: bool = False) -> TrainingSpeed:
    """Return the speed that the rate of a matrix product suggests; a machine that is busy now may be free later."""
    words = f"half of the {rate.now / 1e9:,.0f} GFLOP/s measured now"
    if rate.alone > BUSY_FACTOR * rate.now:
        words += f", {rate.alone / 1e9:,.0f} if nothing else runs"
    slow, fast = EFFICIENCY * rate.now / MEASURED_RANGE, EFFICIENCY * rate.alone * MEASURED_RANGE
    return TrainingSpeed(slow, fast, words, measured=True, gpu=gpu)


def estimate_seconds(
    size: BaseSize, config: TrainConfig, work: EpochWork, validation: ValidationWork, speed: TrainingSpeed
) -> Range:
    """Return the time of the whole run with validation after each epoch. Early stopping lowers the low end."""
    epochs = count_epochs(work, config)
    flops = train_flops(size, config, work, epochs) + max(1.0, epochs) * answer_flops(size, validation)
    low, high = flops / speed.fast, flops / speed.slow
    if speed.measured and speed.gpu:
        waits = epochs * work.reads * size.layers
        low, high = low + waits * GPU_WAIT_S[0], high + waits * GPU_WAIT_S[1]
    elif speed.measured:
        moved = epochs * work.steps * OPTIMIZER_BYTES * trainable_parameters(size, config)
        high += moved / MEMORY_BYTES_PER_S
    shortest = min(1.0, (config.patience + 1) / epochs) if config.patience else 1.0
    return Range(low=low * shortest, high=high)


def estimate_training(
    base: str,
    size: BaseSize,
    config: TrainConfig,
    rows: Sequence[TokenizedRow],
    validation: ValidationWork,
    speed: TrainingSpeed,
) -> TrainingEstimate:
    """Return what the fine-tune takes, without free memory and cost, which the caller adds."""
    work = epoch_work(rows, config)
    epochs = count_epochs(work, config)
    read, several = largest_micro_batch(rows, size, config, gpu=speed.gpu)
    top = peak_memory(size, config, read, gpu=speed.gpu, several=several)
    return TrainingEstimate(
        base=base,
        parameters=size.parameters,
        trained=round(trainable_parameters(size, config)),
        method=config.method,
        epochs=epochs,
        steps=max(1, round(epochs * work.steps)),
        tokens=round(epochs * work.tokens),
        flops=train_flops(size, config, work, epochs),
        seconds=estimate_seconds(size, config, work, validation, speed),
        pace=speed.words,
        memory_bytes=top.span,
        least_bytes=top.at_least,
        free_bytes=None,
        cost_usd=None,
    )


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
