"""The memory of a whole run: the fine-tune, then the models that are measured one after the other, then the large one.

Each step gives its memory back before the next (`release_memory`), so the peak of a run is that of its largest step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smallfirst.data.findings import Finding, make_finding
from smallfirst.models.base_size import BaseSize
from smallfirst.models.catalog import CATALOG, pulled_path
from smallfirst.project.candidate_registry import FINE_TUNED
from smallfirst.project.candidates import project_candidates
from smallfirst.project.project import Project
from smallfirst.records import Record
from smallfirst.training.estimates import PROGRAM_BYTES, Range, format_gigabytes
from smallfirst.training.hardware import FreeMemory

MEASURING_BYTES = (2.0, 8.0)
"""For each weight of a language model that is measured: its bf16 weights, and at most a second copy for the fast
engine, prompts and results. SmolLM2-135M took 6."""
ENCODER_BYTES = 0.5e9
"""A sentence encoder with PyTorch, at most."""
GGUF_BYTES = (1.0, 2.3)
"""For each byte of a GGUF file that llama.cpp runs, with 16,384 tokens of context: Qwen2.5-Coder-1.5B in 4 bits took
2.05."""


class MemoryForecast(Record):
    """Memory of the steps of a run in bytes, the program included."""

    training: Range | None
    """The fine-tune; None if there is none, or its size is unknown."""
    measuring: Range
    """Measuring the candidates, one in memory at a time."""
    large: Range | None
    """Asking a large model on this machine, which runs in a process of its own; None if it runs elsewhere."""
    free_bytes: int | None
    """Free memory without swap; None if unknown."""

    @property
    def peak(self) -> Range:
        """The largest of the steps."""
        steps = [step for step in (self.training, self.measuring, self.large) if step]
        return Range(low=max(step.low for step in steps), high=max(step.high for step in steps))

    @property
    def in_words(self) -> str:
        steps = {"fine-tune": self.training, "measuring": self.measuring, "large model": self.large}
        parts = ", ".join(f"{name} {_span(step)}" for name, step in steps.items() if step)
        free = "" if self.training or self.free_bytes is None else f"; {format_gigabytes(self.free_bytes)} is free"
        return f"about {_span(self.peak)} ({parts}){free}"


def forecast_memory(
    project: Project, size: BaseSize | None, training: Range | None, free: FreeMemory | None
) -> MemoryForecast:
    """Return the memory of a run with a base model of this size, whose fine-tune takes `training`."""
    candidates = project_candidates(project)
    low, high = PROGRAM_BYTES / 2, PROGRAM_BYTES
    if any(candidate.encoder_setting for candidate in candidates):
        high += ENCODER_BYTES
    if size is not None and any(candidate.is_language_model for candidate in candidates):
        low += MEASURING_BYTES[0] * size.parameters
        high = max(high, PROGRAM_BYTES + MEASURING_BYTES[1] * size.parameters)
    large = None
    if weights := _large_bytes(project):
        low_share, high_share = GGUF_BYTES
        large = Range(low=PROGRAM_BYTES / 2 + low_share * weights, high=PROGRAM_BYTES + high_share * weights)
    return MemoryForecast(
        training=training if any(candidate.name == FINE_TUNED for candidate in candidates) else None,
        measuring=Range(low=low, high=high),
        large=large,
        free_bytes=free.bytes if free and not free.gpu else None,
    )


def memory_findings(forecast: MemoryForecast, free: FreeMemory | None) -> Iterator[Finding]:
    """Yield a finding if the large model on this machine does not fit beside the program."""
    if forecast.large is None or free is None or free.gpu or forecast.large.low <= free.bytes + free.swap:
        return
    needed, there = format_gigabytes(forecast.large.low), format_gigabytes(free.bytes + free.swap)
    what = f"asking the large model takes at least {needed} of memory, {there} is free"
    yield make_finding("fix", what, "a smaller file under large.gguf, or a large.endpoint elsewhere", n=1)


def _large_bytes(project: Project) -> int:
    """Return the bytes of a GGUF file that a run would load; 0 if it loads none, or its size is not known here."""
    large = project.file.large
    if large is None or not large.gguf or (large.recorded and project.file.path(large.recorded).exists()):
        return 0
    entry = next((one for one in CATALOG if one.name.casefold() == large.gguf.casefold()), None)
    path = pulled_path(entry) if entry else project.file.path(Path(large.gguf))
    if path.is_file():
        return path.stat().st_size
    return 1_000_000 * entry.megabytes if entry else 0


def _span(bytes_: Range) -> str:
    return f"{bytes_.low / 1e9:.1f} to {bytes_.high / 1e9:.1f} GB"
