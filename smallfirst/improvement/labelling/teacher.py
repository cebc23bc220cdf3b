"""Who labels: the large path of a task file, what decides on its answers, and the most that one of them can cost.

A cap that is never exceeded needs a bound before the answer is there: each byte of the prompt is taken for a token, and
the answer for as long as it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset, Message
from smallfirst.errors import ConfigError, PriceUnknown
from smallfirst.models.few_shot import PromptedModel, fixed_shots
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Model
from smallfirst.pipeline.large_model import prompted_model
from smallfirst.project.task_file import LargeConfig, TaskFile
from smallfirst.records import fingerprint
from smallfirst.tasks.task import Task

TOKENS_AROUND_PROMPT, TOKENS_AROUND_MESSAGE = 128, 16
"""Tokens that a chat template may add; the usual ones add about a quarter of that."""
GGUF_AT_ONCE, GGUF_TIMEOUT_S, GGUF_RETRIES = 2, 300.0, 1
"""How `large.general_model` runs a GGUF file."""
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
    prompt = task.instructions(() if large.nearest else fixed_shots(train, task, large.shots_per_label))
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
        worst_usd=_worst_usd(file, large, model, task.max_answer_tokens),
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
    model = load_model(folder, name=f"{task.name} model in {folder.name}", price=file.prices.machine)
    longest = file.prices.machine.cost_usd(LOCAL_TIMEOUT_S)
    prompt_fingerprint = fingerprint(manifest.model_dump())
    return Teacher(
        model=model,
        prompt_fingerprint=prompt_fingerprint,
        prompt=(),
        worst_usd=lambda _: longest,
        max_concurrency=LOCAL_AT_ONCE,
    )


def max_tokens(messages: Sequence[Message]) -> int:
    """Return a number of tokens that no tokenizer in use exceeds: one a byte, and what a chat template adds."""
    n_bytes = sum(len(message.content.encode()) for message in messages)
    return n_bytes + TOKENS_AROUND_MESSAGE * len(messages) + TOKENS_AROUND_PROMPT


def _settings(large: LargeConfig) -> dict[str, Any]:
    if large.endpoint is not None:
        return {"nearest": large.nearest, **large.endpoint.model_dump(include={"base_url", "extra_body"})}
    return {"nearest": large.nearest, "gguf": large.gguf, "only_labels": large.only_labels}


def _worst_usd(file: TaskFile, large: LargeConfig, model: PromptedModel, n_written: int) -> Callable[[str], float]:
    endpoint = large.endpoint
    if endpoint is not None and _is_paid_by_tokens(file, large):
        price, url = file.prices.token_cost_usd, endpoint.base_url
        return lambda text: price(model.name, max_tokens(model.messages(text)), n_written, api_url=url)
    timeout_s, retries = GGUF_TIMEOUT_S, GGUF_RETRIES
    if endpoint is not None:
        timeout_s, retries = endpoint.timeout_s, endpoint.max_retries
    # Each try may wait to be sent and to be let in, the last one for the first byte and for the rest.
    longest = file.prices.machine.cost_usd(2 * timeout_s * (retries + 1))
    return lambda text: longest


def _is_paid_by_tokens(file: TaskFile, large: LargeConfig) -> bool:
    """As EndpointModel decides it, which has refused an unknown price already."""
    endpoint = large.endpoint
    if endpoint is None or endpoint.priced_by == "machine":
        return False
    try:
        file.prices.source(endpoint.model, api_url=endpoint.base_url)
    except PriceUnknown:
        return False
    return True
