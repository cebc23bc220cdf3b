"""A causal model that learns from a teacher's probabilities as well as from the right answers.

A target's loss is (1 - a) · cross-entropy + a · T² · KL(teacher ‖ student), both at temperature T (Hinton, Vinyals and
Dean 2015). Teacher and student must have one vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from smallfirst.errors import ConfigError
from smallfirst.models.catalog import find_weights
from smallfirst.models.generation.adapters import load_merged
from smallfirst.models.local.label_tokens import choose_label_tokens
from smallfirst.models.manifest import MANIFEST, read_manifest
from smallfirst.tasks.task import Task
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.causal_lm import CausalBackend, forward
from smallfirst.training.config import TeacherConfig, TrainConfig

MAX_SHOWN = 3
"""Tokens or labels of a kind that an error names."""


class DistillationBackend(CausalBackend):
    """The Backend of a causal model with a teacher."""

    def __init__(self, teacher: TeacherConfig, task: Task) -> None:
        self.teacher, self.task = teacher, task
        self.reader: Any = None
        """The teacher's model, once it is loaded."""

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        model, tokenizer = super().load(base, config)
        self.reader = load_teacher(self.teacher, self.task, tokenizer)
        return model, tokenizer

    def loss(self, model: Any, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        with torch.inference_mode():
            taught = self.reader.get_output_embeddings()(forward(self.reader, rows).states)
        states, tokens = forward(model, rows, self.frozen)
        return distillation_loss(model.get_output_embeddings()(states), taught, tokens, self.teacher)


def distillation_loss(
    logits: torch.Tensor, taught: torch.Tensor, tokens: torch.Tensor, teacher: TeacherConfig
) -> torch.Tensor:
    """Return the sum of the losses of n targets, in nats; logits and taught (n, vocabulary), tokens (n,)."""
    width, t = min(logits.shape[1], taught.shape[1]), teacher.temperature
    own = logits.float()
    hard = F.cross_entropy(own, tokens, reduction="sum")
    student = (own[:, :width] / t).log_softmax(-1)
    wanted = (taught[:, :width].float() / t).log_softmax(-1)
    soft = F.kl_div(student, wanted, reduction="sum", log_target=True)
    return (1 - teacher.weight) * hard + teacher.weight * t**2 * soft


def load_teacher(teacher: TeacherConfig, task: Task, tokenizer: Any) -> Any:
    """Return the teacher's frozen model. Raise ConfigError if it cannot teach this task, WeightsNotFound."""
    folder = find_weights(teacher.base)
    if folder.is_file():
        raise ConfigError(
            f"small.teacher: {teacher.base} is a GGUF file here, which gives no probabilities to learn from",
            hint="name a folder or hub model of safetensors",
        )
    check_task(folder, task, tokenizer)
    model, own = load_merged(folder)
    check_vocabulary(teacher.base, own.get_vocab(), tokenizer.get_vocab())
    return model.requires_grad_(False)


def check_vocabulary(name: str, theirs: Mapping[str, int], ours: Mapping[str, int]) -> None:
    """Raise ConfigError naming how the teacher's token ids differ from the student's."""
    moved = [token for token in ours if token in theirs and theirs[token] != ours[token]]
    parts = [
        (sorted(theirs.keys() - ours.keys()), "only in the teacher's"),
        (sorted(ours.keys() - theirs.keys()), "only in the student's"),
        ([f"{token} ({theirs[token]}, not {ours[token]})" for token in moved], "under another number"),
    ]
    found = [f"{len(tokens):,} {where}: {_some(tokens)}" for tokens, where in parts if tokens]
    if found:
        raise ConfigError(
            f"small.teacher: {name} has another vocabulary than the student\n  " + "\n  ".join(found),
            hint="name a model with the student's tokenizer; any other can label rows:  smallfirst label task.yaml",
        )


def check_task(folder: Path, task: Task, tokenizer: Any) -> None:
    """Raise ConfigError if a teacher in `folder` answers another task, or with other codes, than the student."""
    if not (folder / MANIFEST).is_file():
        if task.closed:
            raise ConfigError(
                f"small.teacher: {folder} knows no codes for the labels of {task.name}, so it cannot teach them",
                hint="train the larger model on this task first, and name its folder (<run>/model)",
            )
        return
    manifest = read_manifest(folder)
    wrong = "asks with another prompt" if manifest.task.prompt("…") != task.prompt("…") else ""
    if manifest.kind != ("label_tokens" if task.closed else "generative"):
        wrong = f'is of kind "{manifest.kind}"'
    elif task.closed:
        ours = dict(zip(task.closed, choose_label_tokens(task.closed, tokenizer), strict=True))
        theirs = dict(zip(manifest.task.closed, manifest.label_tokens, strict=True))
        other = sorted(label for label in ours.keys() | theirs.keys() if ours.get(label) != theirs.get(label))
        if other:
            wrong = f"has other labels or codes: {_some(other)}"
    if wrong:
        raise ConfigError(
            f"small.teacher: {folder} was trained for {manifest.task.name} and {wrong}, so it cannot teach {task.name}",
            hint="train the larger model with this task file, and name its folder (<run>/model)",
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"“{name}”" for name in names[:MAX_SHOWN])
    return shown + (", …" if len(names) > MAX_SHOWN else "")
