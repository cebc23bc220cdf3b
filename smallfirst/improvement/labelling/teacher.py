"""Who labels: the large path of a task file, or a local model, and what decides on its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset, Message
from smallfirst.errors import ConfigError
from smallfirst.models.few_shot import PromptedModel, fixed_shots
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Model
from smallfirst.pipeline.large_model import GGUF_AT_ONCE, prompted_model, told_task, worst_usd
from smallfirst.project.small_model import load_small
from smallfirst.project.task_file import LargeConfig, TaskFile
from smallfirst.records import fingerprint
from smallfirst.tasks.task import Task

LOCAL_AT_ONCE, LOCAL_TIMEOUT_S = 32, 60.0
"""Texts that a model of our own reads side by side, and seconds that one of them surely does not take."""


class Teacher(NamedTuple):
    """A model that labels."""

    model: Model
    """Answers a text as the task wants it; adds the task's prompt itself."""
    prompt_fingerprint: str
    """Fingerprint of all that decides on its answers but the text: model, prompt and settings."""
    prompt: tuple[Message, ...]
    worst_usd: Callable[[str], float]
    """Most that one answer to this text may cost."""
    max_concurrency: int = 1


def large_model_teacher(file: TaskFile, task: Task, train: Dataset) -> Teacher:
    """Return the large model of the task file with its prompt.

    Raise ConfigError if none is named or only recorded answers are, PriceUnknown if its answers have no price.
    """
    model = prompted_model(file, task, train)
    large = file.large
    assert isinstance(model, PromptedModel)
    assert large is not None  # else prompted_model raises
    shots = () if large.nearest else fixed_shots(train, task, large.shots_per_label)
    prompt = told_task(file, task).instructions(shots)
    decides = [
        model.name,
        _settings(large),
        [message.model_dump() for message in prompt],
        [train.content_fingerprint, file.small.encoder] if large.nearest else None,
        task.answer_schema(),
        task.max_answer_tokens,
    ]
    return Teacher(
        model=model,
        prompt_fingerprint=fingerprint(decides),
        prompt=tuple(prompt),
        worst_usd=worst_usd(file, model),
        max_concurrency=large.endpoint.max_concurrency if large.endpoint else GGUF_AT_ONCE,
    )


def local_teacher(folder: Path, file: TaskFile, task: Task) -> Teacher:
    """Return a model in a folder, made for this task, as the teacher; its answers cost the machine's time.

    Raise ConfigError if the folder holds no model, or one that answers otherwise than the task.
    """
    manifest = read_manifest(folder)
    if manifest.task.kind != task.kind or set(manifest.task.closed) != set(task.closed):
        raise ConfigError(
            f"the model in {folder} was made for another task ({manifest.task.kind} {manifest.task.name}): its answers "
            f"are not those of {task.name}",
            hint="give a model of this task, trained on its labelled rows",
        )
    model = load_small(file, folder, name=f"{task.name} model in {folder.name}")
    longest = file.prices.machine.cost_usd(LOCAL_TIMEOUT_S)
    prompt_fingerprint = fingerprint(manifest.model_dump())
    return Teacher(
        model=model,
        prompt_fingerprint=prompt_fingerprint,
        prompt=(),
        worst_usd=lambda _: longest,
        max_concurrency=LOCAL_AT_ONCE,
    )


def _settings(large: LargeConfig) -> dict[str, Any]:
    if large.endpoint is not None:
        return {"nearest": large.nearest, **large.endpoint.model_dump(include={"base_url", "extra_body"})}
    return {"nearest": large.nearest, "gguf": large.gguf, "only_labels": large.only_labels}
