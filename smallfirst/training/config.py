"""TrainConfig, every knob of a fine-tune with its default, unit and effect; rows in tokens, scores."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, Protocol, TypeVar

import pydantic

from smallfirst.base.records import Record
from smallfirst.models.manifest import Manifest


def epoch_seed(config: TrainConfig, epoch: int) -> int:
    """Return the seed of the order of an epoch (from 0)."""
    return config.seed * 100_003 + epoch


class Duration(NamedTuple):
    """How long to train: a number of epochs, batches or tokens."""

    amount: int
    unit: Literal["ep", "ba", "tok"]


def parse_duration(text: str) -> Duration:
    """Parse `8ep`, `300ba` or `1_000_000tok`. Raise ValueError that states the rule."""
    match = re.fullmatch(r"([0-9]+(?:_[0-9]+)*)(ep|ba|tok)", text.strip())
    if not match or int(match[1]) < 1:
        raise ValueError(f'"{text}" is not a duration; write 8ep (epochs), 300ba (batches) or 1_000_000tok')
    return Duration(int(match[1]), match[2])  # type: ignore[arg-type]


class TrainConfig(Record):
    """How to fine-tune."""

    method: Literal["full", "lora", "qlora"] = "full"
    """`full` moves every weight; `lora` low-rank adapters, merged at the end (less memory, less forgetting); `qlora`
    adapters over a base in 4 bits (Dettmers et al. 2023): a quarter of the base's memory, a little less accurate."""
    adapters: Literal["merged", "kept"] = "merged"
    """`merged`: the version is a whole model · `kept`: it is the adapter alone, a few MB that run over the same base;
    in a vLLM, versions and tasks over one base share its weights."""
    duration: str = "5ep"
    """Epochs (`5ep`), batches (`300ba`) or tokens (`1_000_000tok`)."""
    learning_rate: float = pydantic.Field(default=2e-4, gt=0, lt=1)
    """Peak rate of AdamW. Full fine-tunes of models this small want 1e-4 to 3e-4; LoRA 1e-4 to 1e-3."""
    warmup_share: float = pydantic.Field(default=0.06, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0; then it falls along a cosine to `final_rate_share`."""
    final_rate_share: float = pydantic.Field(default=0.02, ge=0, le=1)
    """Rate at the end as a share of the peak."""
    batch_tokens: int = pydantic.Field(default=1024, ge=32)
    """Tokens per step, padding included. Rows of similar length are put together."""
    micro_tokens: int | None = pydantic.Field(default=None, ge=32)
    """Tokens read at once, padding included; a step adds up as many reads as its batch needs. The same model comes out,
    with less memory. None: the whole batch."""
    gradient_checkpointing: bool | None = None
    """True: a layer's activations are computed again in the backward pass instead of kept: a third more work, and long
    rows fit. None: if they would not fit otherwise. The model is the same."""
    patience: int | None = pydantic.Field(default=None, ge=1)
    """Stop after so many epochs in a row that score significantly below the best. None: train to the end."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    """Decoupled, on matrices only."""
    clip_norm: float = pydantic.Field(default=1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    lora_rank: int = pydantic.Field(default=16, ge=1)
    """Rank of the adapters (lora, qlora); on all linear layers, alpha = 2 × rank."""
    frozen_layers: int = pydantic.Field(default=0, ge=0)
    """Lowest layers that stay as they are, with the embeddings (method: full): the less work, the more of them. At
    least one layer is trained. What the frozen ones of an encoder make of a row is computed once."""
    max_seq_tokens: int = pydantic.Field(default=512, ge=16)
    """Longest row; a longer one is refused by line number, never cut silently."""
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _adapters_are_trained(self) -> TrainConfig:
        if self.adapters == "kept" and self.method == "full":
            raise ValueError("adapters: kept needs a method that trains adapters; set method: lora")
        return self

    @pydantic.field_validator("duration")
    @classmethod
    def _duration_is_readable(cls, value: str) -> str:
        parse_duration(value)
        return value


OF_LANGUAGE_MODELS = ("method", "adapters", "micro_tokens", "gradient_checkpointing", "lora_rank")
"""Settings that the fine-tune of an encoder does not read."""


Precision = Literal["bf16", "fp32"]

MIN_EPOCH_BATCHES, MAX_PASSES = 30, 8
"""With fewer batches an epoch passes over the rows several times, in other groups each time: few rows need many steps,
and every text meets many others of its label, as in SetFit (Tunstall et al. 2022)."""


def epoch_passes(n_tokens: float, config: TrainConfig) -> int:
    """Return how often an epoch passes over training rows of so many tokens in all."""
    return min(MAX_PASSES, max(1, round(MIN_EPOCH_BATCHES * config.batch_tokens / max(1, n_tokens))))


class HasTokens(Protocol):
    """A row in tokens, of any kind of model."""

    @property
    def ids(self) -> tuple[int, ...]: ...


R = TypeVar("R", bound=HasTokens)


class TokenizedRow(NamedTuple):
    """A row in tokens: the first `n_prompt` are the prompt, the rest are targets."""

    ids: tuple[int, ...]
    n_prompt: int


class ValidationResult(NamedTuple):
    """The score of a model after an epoch."""

    value: float
    """Higher is better; for a task the mean score on the selection rows, in [0, 1]."""
    manifest: Manifest
    """The manifest with the temperature or calibration fitted on these rows."""
    n_rows: int = 0
    """Rows of which `value` is the mean, if it is in [0, 1]; 0: how exact it is, is unknown."""
    measure: str = "validation_score"
    """Name of `value` in MLflow and in events."""
