"""The small model of a task, loaded as its file says: priced by its machine, on vLLM where it names one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smallfirst.project.task_file import TaskFile

if TYPE_CHECKING:
    from smallfirst.models.protocol import Model


def small_engine(file: TaskFile) -> str:
    """Return what runs the small language model, with all that can move its probabilities; empty for PyTorch here."""
    return f"vLLM at {file.small.vllm.url}" if file.small.vllm else ""


def load_small(file: TaskFile, folder: Path, *, name: str) -> Model:
    """Return the model in a folder that training or the registry wrote. Raise ConfigError."""
    from smallfirst.models.loading import load_model

    return load_model(folder, name=name, price=file.prices.machine, vllm=file.small.vllm)
