"""What a fine-tune takes on this machine before it starts: memory, time, cost; one that cannot fit is refused.

Memory. Per weight: 2 bytes bf16 (0.52 in 4 bits with the scales), and for each trained one 12 (fp32 master and both
moments of AdamW); on top of them the larger of two moments of a step: 4 bytes fp32 gradient while the optimizer works,
or 2 bytes bf16 gradient (and the 4, if a step has several micro-batches) beside the activations of one micro-batch.
Merging adapters makes the blocks' weights a second time, in the processor's memory.

A layer of the Llama family keeps for each token, in bytes (h hidden, q query, k key, f feed-forward width): 16 h + 4 q
+ 4 k + 8 f; short rows on a CPU also 6 for each head and key; each target 10 a vocabulary entry. Checkpointed layers
keep 2 h each, and one of them all. The formula is within 3 % of `torch.autograd.graph.saved_tensors_hooks`, within
10 % for adapters.

Time. Tokens over the tokens a second of an earlier run with the same base and method, or of its own first steps. A
sentence encoder is timed on a few texts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smallfirst.base.errors import TrainingError
from smallfirst.base.records import Record
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.models.batching import usable_cores
from smallfirst.models.local.weights import choose_device
from smallfirst.training.config import TokenizedRow, TrainConfig, epoch_seed, parse_duration

if TYPE_CHECKING:
    import torch

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
LOSS_TARGETS = 1024
"""Targets whose logits are in memory at once; those of more are computed again in the backward pass."""
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
SAMPLE_ROWS, SAMPLE_WORDS = 32, 2_000
"""Texts, and about how many of their words at most, on which an encoder is timed."""
READ_S, TRAIN_S, REFERENCE_FLOPS = 0.7e-11, 2.1e-11, 325e9
"""Seconds in which an encoder reads a token and learns from one, for each of its weights, on a machine of that rate."""
CHARS_PER_TOKEN = 4.0
SMALLER = "set method: lora or qlora under small.training, or take a smaller base model"
"""What to do about a fine-tune that does not fit."""


class FreeMemory(NamedTuple):
    """Memory available now, in bytes."""

    bytes: int
    swap: int
    """Beyond it: a run that needs it is slow, but does not die."""
    gpu: bool

    def lacks(self, need: float) -> str:
        """Return how much less than `need` bytes there is, in a clause; empty if there is enough."""
        if need <= self.bytes + self.swap:
            return ""
        free = f"{format_gigabytes(self.bytes + self.swap)} is free"
        return f"at least {format_gigabytes(need)} of {'GPU memory' if self.gpu else 'memory'}, {free}"


def free_memory() -> FreeMemory:
    """Return the free memory of the GPU if training would use one, else of the system. Raise ImportError."""
    if (device := choose_device()).type != "cuda":
        return system_memory()
    import torch

    return FreeMemory(int(torch.cuda.mem_get_info(device)[0]), 0, gpu=True)


def system_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> FreeMemory:
    """Return the free memory of the system, or what its container may still take; its size where only that is known."""
    try:
        figures = _figures(meminfo)
        free, swap = figures["MemAvailable:"] * 1024, figures.get("SwapFree:", 0) * 1024
    except (OSError, KeyError):
        return FreeMemory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 0, gpu=False)
    try:  # cgroup v2; pages of files can be reclaimed and do not count
        limit, used = (int((cgroup / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        pages = _figures(cgroup / "memory.stat")
    except (OSError, ValueError):  # no container, or "max": no limit
        return FreeMemory(free, swap, gpu=False)
    allowed = max(0, limit - used + pages.get("inactive_file", 0) + pages.get("active_file", 0))
    return FreeMemory(free, swap, gpu=False) if allowed > free else FreeMemory(allowed, 0, gpu=False)


def _figures(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


class EncoderPace(NamedTuple):
    """What an encoder takes for a text, in seconds."""

    read_s: float
    train_s: float
    """Forwards and backwards, in the faster precision."""
    tokens: float
    parameters: int


@cache
def encoder_pace(folder: Path, texts: tuple[str, ...]) -> EncoderPace:
    """Measure an encoder on `texts`, read as they are served and trained on; takes a second or two."""
    from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
    from smallfirst.training.precision import DTYPES, fastest_precision

    served, encoder = SentenceEncoder.for_inference(folder), SentenceEncoder(folder)
    served.has_cut = encoder.has_cut = True  # the end of a text that is timed is of no interest
    served.embed(texts)  # the first call is slower
    read_s = _seconds(lambda: served.embed(texts)) / len(texts)
    ids = [encoder.tokens(text) for text in texts]

    def loss() -> torch.Tensor:
        total: torch.Tensor = encoder.vectors(ids).sum()
        return total

    encoder.model.to(DTYPES[fastest_precision(encoder.model, loss).name])
    loss().backward()  # type: ignore[no-untyped-call]
    train_s = _seconds(lambda: loss().backward()) / len(texts)  # type: ignore[no-untyped-call]
    parameters = sum(p.numel() for p in encoder.model.parameters())
    return EncoderPace(read_s, train_s, sum(map(len, ids)) / len(ids), parameters)


def guess_pace(parameters: float, texts: Sequence[str]) -> EncoderPace:
    """Return about what an encoder with so many weights takes for these texts, from how fast this machine multiplies.

    By all-MiniLM-L6-v2 and all-mpnet-base-v2 on two Intel cores, within a factor of two.
    """
    tokens = sum(2 + len(text) / CHARS_PER_TOKEN for text in texts) / max(1, len(texts))
    per_token = parameters * tokens * REFERENCE_FLOPS / _multiplied_per_s()
    return EncoderPace(READ_S * per_token, TRAIN_S * per_token, tokens, round(parameters))


def guess_training_pace(parameters: float) -> float:
    """Return about how many tokens a second a language model with so many weights learns from, as `guess_pace`."""
    return _multiplied_per_s() / (parameters * TRAIN_S * REFERENCE_FLOPS)


@cache
def _multiplied_per_s() -> float:
    """Return the FLOPs a second of a product of two matrices in fp32, on all cores.

    By the processor time of one thread, so that programs beside it do not count.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    a, needed_s = np.ones((1024, 1024), dtype=np.float32), list[float]()
    with threadpool_limits(1):
        for _ in range(5):
            began = time.thread_time()
            a @ a
            needed_s.append(time.thread_time() - began)
    return usable_cores() * 2 * 1024**3 / min(needed_s)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Pace(NamedTuple):
    """How fast a fine-tune is."""

    tokens_per_s: float
    words: str


def earlier_pace(runs: Path, base: str, method: str) -> Pace | None:
    """Return the pace of the latest run in `*/*` below a folder with this base and method; None without one."""
    for path in sorted(runs.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if (run["base"], run["config"]["method"]) == (base, method):
                return Pace(run["tokens_per_s"], f"an earlier run read {run['tokens_per_s']:,.0f} tokens/s")
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: it only does not help
    return None


class Range(Record):
    """A number that is known only roughly."""

    low: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(low=self.low * factor, high=self.high * factor)


class MicroBatchShape(NamedTuple):
    """The size of a micro-batch."""

    rows: int
    width: int
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


class ValidationWork(NamedTuple):
    """Tokens of the validation after each epoch."""

    read_tokens: int
    written_tokens: int

    @property
    def as_trained(self) -> float:
        return READ_SHARE * (self.read_tokens + WRITTEN_FACTOR * self.written_tokens)


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
    pace: str
    memory_bytes: Range
    """At the peak, the program included."""
    free_bytes: int
    cost_usd: Range | None = None
    """At the machine's price an hour; None if the task file sets none."""

    @property
    def short_summary(self) -> str:
        memory = self.memory_bytes.times(1e-9)
        return f"about {format_seconds(self.seconds)}, {memory.low:.1f} to {memory.high:.1f} GB"

    @property
    def in_words(self) -> list[str]:
        trained = "" if self.trained == self.parameters else f", {_millions(self.trained)} of them trained"
        time_needed, memory = self.short_summary.split(", ")
        lines = [
            f"fine-tune of {self.base}: {self.method}, {_millions(self.parameters)} weights{trained}",
            f"  work    {self.tokens:,} tokens in {self.steps:,} steps, {self.epochs:.3g} epochs",
            f"  time    {time_needed} ({self.pace})",
            f"  memory  about {memory}; {format_gigabytes(self.free_bytes)} is free",
        ]
        if self.cost_usd is not None:
            lines.append(f"  cost    about ${self.cost_usd.low:.2g} to ${self.cost_usd.high:.2g}")
        return lines


def estimate_training(
    base: str,
    size: BaseSize,
    config: TrainConfig,
    rows: Sequence[TokenizedRow],
    validation: ValidationWork,
    pace: Pace,
    free: FreeMemory,
    *,
    usd_per_hour: float | None = None,
) -> TrainingEstimate:
    """Return what the fine-tune takes. Early stopping lowers the low end of its time."""
    steps, tokens = len(first_epoch(rows, config)), sum(len(row.ids) - 1 for row in rows)
    epochs = count_epochs(config, steps, tokens)
    needed_s = (epochs * tokens + max(1.0, epochs) * validation.as_trained) / pace.tokens_per_s
    shortest = min(1.0, (config.patience + 1) / epochs) if config.patience else 1.0
    seconds = Range(low=shortest * needed_s / TIME_RANGE, high=needed_s * TIME_RANGE)
    return TrainingEstimate(
        base=base,
        parameters=size.parameters,
        trained=round(trainable_parameters(size, config)),
        method=config.method,
        epochs=epochs,
        steps=max(1, round(epochs * steps)),
        tokens=round(epochs * tokens),
        seconds=seconds,
        pace=pace.words,
        memory_bytes=expected_memory(size, config, rows, gpu=free.gpu).span,
        free_bytes=free.bytes,
        cost_usd=None if usd_per_hour is None else seconds.times(usd_per_hour / 3600),
    )


def count_epochs(config: TrainConfig, steps: int, tokens: int) -> float:
    """Return how many epochs of so many steps and tokens the duration makes."""
    duration = parse_duration(config.duration)
    return duration.amount / {"ep": 1, "ba": steps, "tok": tokens}[duration.unit]


def first_epoch(rows: Sequence[TokenizedRow], config: TrainConfig) -> list[list[MicroBatchShape]]:
    """Return the micro-batches of each step of the first epoch, batched as in training."""
    from smallfirst.training.loop import epoch_batches, micro_batches  # loads PyTorch

    batches = epoch_batches(rows, batch_tokens=config.batch_tokens, seed=epoch_seed(config, 0))
    limit = config.micro_tokens or config.batch_tokens
    return [
        [
            MicroBatchShape(len(part), max(len(r.ids) - 1 for r in part), sum(len(r.ids) - r.n_prompt for r in part))
            for part in micro_batches(batch, limit)
        ]
        for batch in batches
    ]


def trainable_parameters(size: BaseSize, config: TrainConfig) -> float:
    """Return how many weights are trained."""
    return size.parameters if config.method == "full" else config.lora_rank * size.linear_ends


def activation_bytes(size: BaseSize, config: TrainConfig, read: MicroBatchShape, *, gpu: bool) -> float:
    """Return what the backward pass keeps of one micro-batch; 0 for an encoder, whose share is small."""
    if not size.causal:
        return 0.0
    token: float = 16 * size.hidden + 4 * size.query + 4 * size.key_value + 8 * size.inner
    if not gpu and read.width <= SHORT_TOKENS:
        token += 6 * size.heads * read.width
    body = size.layers * 2 * size.hidden + token if config.gradient_checkpointing else size.layers * token
    return read.rows * read.width * body + min(read.targets, LOSS_TARGETS) * 10 * size.vocabulary


def base_bytes(size: BaseSize, config: TrainConfig) -> float:
    """Return what the weights take as they are read in training."""
    if config.method == "qlora":
        return 2 * (size.parameters - size.body) + NF4_BYTES * size.body
    return (2 if size.causal else 4) * size.parameters


def peak_memory(
    size: BaseSize, config: TrainConfig, read: MicroBatchShape, *, gpu: bool = False, several: bool = False
) -> PeakMemory:
    """Return the peak of a run, `read` its largest micro-batch; `several`: a step has more."""
    trained = trainable_parameters(size, config)
    always, kept = base_bytes(size, config) + 12 * trained, activation_bytes(size, config, read, gpu=gpu)
    reading = ((2 if size.causal else 4) + (4 if several else 0)) * trained
    merges = config.method != "full" and config.adapters == "merged" and not gpu
    working = max(4 * trained, 2.0 * size.body if merges else 0.0)
    return PeakMemory(always + reading, kept) if reading + kept >= working else PeakMemory(always + working, 0.0)


def expected_memory(size: BaseSize, config: TrainConfig, rows: Sequence[TokenizedRow], *, gpu: bool) -> PeakMemory:
    """Return the peak of a run on these rows: that of the micro-batch which keeps most in the first epoch."""
    steps = first_epoch(rows, config)
    largest = max(chain(*steps), key=lambda read: activation_bytes(size, config, read, gpu=gpu))
    return peak_memory(size, config, largest, gpu=gpu, several=any(len(step) > 1 for step in steps))


def least_bytes(size: BaseSize, config: TrainConfig, *, gpu: bool = False) -> float:
    """Return the least a fine-tune can take, whatever its rows: weights, masters, moments and gradients."""
    return peak_memory(size, config, MicroBatchShape(0, 0, 0), gpu=gpu).at_least


def require_memory(base: tuple[str, Path], config: TrainConfig) -> None:
    """Raise TrainingError if even the least that the fine-tune of `base` (name and folder) can take is not free."""
    if (size := read_base_size(base[1])) is None:
        return
    free = free_memory()
    if lack := free.lacks(least_bytes(size, config, gpu=free.gpu)):
        weights = f"{size.parameters / 1e6:,.0f} M weights"
        raise TrainingError(f"{config.method} fine-tune of {base[0]} ({weights}) needs {lack}", hint=SMALLER)


def needs_checkpointing(size: BaseSize | None, config: TrainConfig, rows: Sequence[TokenizedRow]) -> bool:
    """Return whether a run whose weights are loaded needs checkpointed layers to fit into the memory that is free."""
    if config.gradient_checkpointing is not None or size is None:
        return bool(config.gradient_checkpointing)
    free = free_memory()
    peak = expected_memory(size, config, rows, gpu=free.gpu)
    return peak.weights - base_bytes(size, config) + AT_MOST * peak.read > free.bytes


def fits_in_fp32(size: BaseSize | None, config: TrainConfig, rows: Sequence[TokenizedRow]) -> bool:
    """Return whether a run of which every weight is trained, loaded in bf16, clearly fits into the memory in fp32.

    Activations are twice as wide then; weights and gradients are their own masters.
    """
    if size is None or config.method != "full":
        return False
    free = free_memory()
    peak = expected_memory(size, config, rows, gpu=free.gpu)
    return peak.weights - base_bytes(size, config) + AT_MOST * 2 * peak.read < free.bytes


def format_gigabytes(n_bytes: float) -> str:
    """Format a size in GB of 10⁹ bytes, in two or three digits."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 1e10 else f"{n_bytes / 1e9:,.0f} GB"


def format_seconds(span: Range) -> str:
    """Return a time that is known roughly in words, of two digits: `85 s to 3.5 min`."""
    low, high = _time(span.low), _time(span.high)
    return high if low == high else f"{low} to {high}"


def _time(seconds: float) -> str:
    units = (("h", 3600), ("min", 60), ("s", 1))
    unit, length = next(((name, n) for name, n in units if seconds >= 1.5 * n), units[-1])
    return f"{max(1.0, float(f'{seconds / length:.2g}')):,g} {unit}"


def _millions(n: float) -> str:
    return f"{n / 1e6:,.0f} M" if n >= 1e7 else f"{n / 1e6:.2g} M"
