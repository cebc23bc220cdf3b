"""The arguments of `foundation_model.create`, checked all at once before anything starts."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from smallfirst import TrainConfig
from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.interfaces.databricks.training_run import ValidationError
from smallfirst.jobs.base_models import context_length, weights_folder
from smallfirst.jobs.job_folder import JobSpec, new_job_name, parse_duration, user_name, utc_now
from smallfirst.records import Record, parse_record

RECIPES: dict[str, Literal["chat", "text"]] = {
    "CHAT_COMPLETION": "chat",
    "INSTRUCTION_FINETUNE": "chat",
    "CONTINUED_PRETRAIN": "text",
}
DEFAULT_DURATION = "1ep"
DEFAULT_CONTEXT_LENGTH = {"chat": 2048, "text": 512}
"""Longest row (chat) or window (text) in tokens if `context_length` is not given, unless the model takes less."""
MIN_USEFUL_LEARNING_RATE = 1e-6
"""Rates below this are for another optimizer: Databricks' 5e-7 is a peak of Lion on models of 8 billion weights. AdamW
at 5e-7 moves the weights of a small model by less than their precision."""
_REGISTERED_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){1,2}")


def _text(value: object) -> str:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError("must be text")
    return str(value).strip()


def _register_name(value: str) -> str:
    if not _REGISTERED_NAME.fullmatch(value):
        raise ValueError(
            "must be catalog.schema or catalog.schema.model, each of letters, digits, _ and -; "
            'for example register_to="main.claims.tickets"'
        )
    return value


def _absolute(value: str) -> str:
    """Make the path of an existing file absolute: the job may run in another folder. Other addresses stay."""
    address = os.path.expanduser(value)
    return str(Path(address).absolute()) if Path(address).exists() else address


def _duration(value: str) -> str:
    parse_duration(value)
    return value


def _weights(value: str) -> str:
    try:
        return str(weights_folder(value))
    except SmallfirstError as error:
        raise _as_value_error(error) from None


def _as_value_error(error: SmallfirstError) -> ValueError:
    return ValueError(f"{error.args[0]}; {error.hint}" if error.hint else str(error.args[0]))


Text = Annotated[str, BeforeValidator(_text)]
Address = Annotated[Text, AfterValidator(_absolute)]


class CreateArguments(Record):
    """Arguments of `create`; those that are None or empty count as not given."""

    validate_inputs: bool = True
    """Look for the weights now."""
    custom_weights_path: Annotated[Text, AfterValidator(_weights)] | None = None
    model: Text
    train_data_path: Address
    register_to: Annotated[Text, AfterValidator(_register_name)]
    experiment_path: Text | None = None
    task_type: Annotated[
        Literal["CHAT_COMPLETION", "INSTRUCTION_FINETUNE", "CONTINUED_PRETRAIN"],
        BeforeValidator(lambda value: str(value).strip().upper()),
    ] = "CHAT_COMPLETION"
    eval_data_path: Address | None = None
    eval_prompts: tuple[Text, ...] = ()
    training_duration: Annotated[Text, AfterValidator(_duration)] | None = None
    learning_rate: float | None = Field(default=None, gt=0, lt=1, allow_inf_nan=False)
    context_length: int | None = Field(default=None, ge=16, strict=True)
    data_prep_cluster_id: Any = None
    config: TrainConfig | None = None

    @field_validator("model")
    @classmethod
    def _is_trainable(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("validate_inputs") and not info.data.get("custom_weights_path"):
            try:
                context_length(value)
            except SmallfirstError as error:
                raise _as_value_error(error) from None
        return value

    @field_validator("context_length")
    @classmethod
    def _fits_the_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        weights = info.data.get("custom_weights_path") or info.data.get("model")
        limit = context_length(weights) if weights and info.data.get("validate_inputs") else None
        if value is not None and limit is not None and value > limit:
            raise ValueError(f"is more than the {limit} tokens that the model takes")
        return value

    def job_spec(self) -> JobSpec:
        name, recipe = new_job_name(self.model), RECIPES[self.task_type]
        limit = context_length(self.custom_weights_path or self.model) if self.validate_inputs else None
        tokens = min(DEFAULT_CONTEXT_LENGTH[recipe], limit or DEFAULT_CONTEXT_LENGTH[recipe])
        given = {
            "duration": self.training_duration,
            "learning_rate": self.learning_rate,
            "max_seq_tokens": self.context_length,
        }
        config = self.config or TrainConfig(duration=DEFAULT_DURATION, max_seq_tokens=tokens)
        return JobSpec(
            name=name,
            recipe=recipe,
            model=self.model,
            weights=self.custom_weights_path,
            train_rows=self.train_data_path,
            eval_rows=self.eval_data_path,
            eval_prompts=self.eval_prompts,
            register_to=".".join([*self.register_to.split("."), name][:3]),
            experiment=self.experiment_path or self.register_to,
            config=config.model_copy(update={key: value for key, value in given.items() if value is not None}),
            created_by=user_name(),
            created_at=utc_now(),
            submitted=self.model_dump(mode="json", exclude_unset=True, exclude={"validate_inputs"}, fallback=str),
        )

    def warn(self) -> None:
        if self.learning_rate is not None and self.learning_rate < MIN_USEFUL_LEARNING_RATE:
            warnings.warn(
                f"learning_rate={self.learning_rate:g} hardly changes a small model: such rates are for Lion on models "
                f"of billions of weights, this is AdamW. Leave it out ({TrainConfig().learning_rate:g})",
                stacklevel=3,
            )
        if self.data_prep_cluster_id is not None:
            warnings.warn("data_prep_cluster_id is not used: rows are read on this machine", stacklevel=3)


def parse_arguments(**given: Any) -> CreateArguments:
    """Return the checked arguments of `create`. Raise ValidationError listing every one that breaks a rule."""
    values = {name: value for name, value in given.items() if value is not None and value != ""}
    try:
        return parse_record(CreateArguments, values, where="arguments of create() that cannot be used")
    except ConfigError as error:
        raise ValidationError(str(error.args[0]), hint="help(foundation_model.create)") from None
