"""Free memory (of a container, what it may still take) and speed of this machine: precisions, an encoder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smallfirst.models.local.weights import choose_device

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SAMPLE_ROWS = 32
"""Texts on which an encoder is timed."""
FP32_FASTER = 1.25
"""How much faster fp32 must be for a model to learn in it: less could be noise, and bf16 takes half the memory."""


class FreeMemory(NamedTuple):
    """Memory available now, in bytes."""

    bytes: int
    swap: int
    """Beyond it: a run that needs it is slow, but does not die."""
    gpu: bool

    @property
    def name(self) -> str:
        return "GPU memory" if self.gpu else "memory"


def has_gpu() -> bool:
    """Return True if training would use a GPU."""
    return choose_device().type == "cuda"


def free_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> FreeMemory | None:
    """Return the free memory of the GPU if training would use one, else of the system; None if unknown."""
    if has_gpu():
        import torch

        return FreeMemory(int(torch.cuda.mem_get_info(choose_device())[0]), 0, gpu=True)
    return system_memory(meminfo, cgroup)


def system_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> FreeMemory | None:
    """Return the free memory of the system or container; its size where only that is known; None if nothing is."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return _whole_memory()
    figures = _figures([line.replace(":", " ") for line in lines])
    if "MemAvailable" not in figures:
        return _whole_memory()
    free, swap = figures["MemAvailable"] * 1024, figures.get("SwapFree", 0) * 1024
    allowed = _container(cgroup)
    return FreeMemory(free, swap, gpu=False) if allowed is None or allowed > free else FreeMemory(allowed, 0, gpu=False)


@cache
def training_dtype() -> torch.dtype:
    """Return the precision in which models learn fastest on the processor: bf16, or fp32 where that is faster.

    Not every processor that has bf16 instructions is faster by them: Intel cores whose AMX is hidden from a virtual
    machine multiply 80 GFLOP/s in bf16 and 160 in fp32. Processor time is compared, which other programs change little;
    takes a tenth of a second.
    """
    import torch

    spent = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    for _ in range(5):
        for dtype in spent:
            a, b = torch.ones(512, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
            a @ b
            began = time.process_time()
            for _ in range(4):
                a @ b
            spent[dtype] = min(spent[dtype], time.process_time() - began)
    faster = spent[torch.bfloat16] > FP32_FASTER * spent[torch.float32]
    return torch.float32 if faster else torch.bfloat16


class EncoderPace(NamedTuple):
    """What an encoder takes for a text, in seconds."""

    read_s: float
    train_s: float
    """Forwards and backwards, in the precision of `training_dtype`."""
    tokens: float
    """Mean tokens of a text."""
    parameters: int


@cache
def encoder_pace(folder: Path, texts: tuple[str, ...]) -> EncoderPace:
    """Measure an encoder on `texts`, read as they are served and trained on; takes a second or two."""
    from smallfirst.models.encoder.sentence_encoder import SentenceEncoder

    served, encoder = SentenceEncoder.for_inference(folder), SentenceEncoder(folder)

    served.embed(texts)  # the first call is slower
    read_s = _seconds(lambda: served.embed(texts)) / len(texts)
    ids = [encoder.tokens(text) for text in texts]
    encoder.model.to(training_dtype())

    def step(rows: list[list[int]]) -> None:
        encoder.vectors(rows).sum().backward()

    step(ids[:8])
    train_s = _seconds(lambda: step(ids)) / len(texts)
    parameters = sum(p.numel() for p in encoder.model.parameters())
    return EncoderPace(read_s, train_s, sum(map(len, ids)) / len(ids), parameters)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _container(cgroup: Path) -> int | None:
    """Return the bytes that the container may still take (cgroup v2); file pages can be reclaimed and do not count."""
    try:
        most = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        figures = _figures((cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if not most.isdecimal():  # "max": no limit
        return None
    files = figures.get("inactive_file", 0) + figures.get("active_file", 0)
    return max(0, int(most) - used + files)


def _figures(lines: list[str]) -> Mapping[str, int]:
    split = [line.split() for line in lines]
    return {words[0]: int(words[1]) for words in split if len(words) > 1 and words[1].isdecimal()}


def _whole_memory() -> FreeMemory | None:
    try:
        return FreeMemory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 0, gpu=False)
    except (AttributeError, OSError, ValueError):
        return None
