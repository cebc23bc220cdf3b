"""The arguments of `foundation_model.create`, each held against its rule before anything starts; all faults at once.

The service this stands in for took a duration such as "soon" and failed an hour later on a machine that was paid for.
"""

from __future__ import annotations

import math
import operator
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from smallfirst.data.sources.volumes import is_volume, volume_path
from smallfirst.errors import SmallfirstError, WeightsNotFound, did_you_mean
from smallfirst.interfaces.databricks.exceptions import InvalidArgument, ValidationError
from smallfirst.jobs.spec import JobSpec, new_job_name, user_name, utc_now
from smallfirst.models.catalog import CATALOG, find_weights
from smallfirst.training.config import TrainConfig, parse_duration

T = TypeVar("T")
RECIPES = {"CHAT_COMPLETION": "chat", "INSTRUCTION_FINETUNE": "chat", "CONTINUED_PRETRAIN": "text"}
"""Lesson by task type."""
DEFAULT_DURATION = "1ep"
DEFAULT_CONTEXT_LENGTH = {"chat": 2048, "text": 512}
"""Longest row (chat) or window (text) if `context_length` is not given, unless the model takes less."""
MIN_CONTEXT_LENGTH = 16
MIN_USEFUL_LEARNING_RATE = 1e-6
"""Rates below this are for another optimiser: Databricks' 5e-7 is a peak of Lion on models of 8 billion weights. AdamW
at 5e-7 moves the weights of a small model by less than they are stored to."""
_NAME_PART = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = (str, int, float, list, tuple, dict)
_COMPOSER = (".pt", ".symlink", ".distcp")


class Refused(Exception):
    """A value breaks a rule."""

    def __init__(self, rule: str, next_step: str) -> None:
        super().__init__(rule)
        self.rule, self.next_step = rule, next_step


class CreateArguments(NamedTuple):
    """What create() was called with, unchecked."""

    model: Any
    train_data_path: Any
    register_to: Any
    experiment_path: Any = ""
    task_type: Any = "CHAT_COMPLETION"
    eval_data_path: Any = None
    eval_prompts: Any = None
    custom_weights_path: Any = None
    training_duration: Any = None
    learning_rate: Any = None
    context_length: Any = None
    data_prep_cluster_id: Any = None
    config: TrainConfig | None = None

    def order(self, *, look_for_weights: bool = True) -> JobSpec:
        """The order for a job. Raises ValidationError with every argument that breaks a rule."""
        checks = _Checks()
        model = checks.take("model", _text, self.model)
        weights = checks.take("custom_weights_path", _weights, self.custom_weights_path)
        limit = checks.take("model", _token_limit, weights or model) if look_for_weights and model else None
        lesson = checks.take("task_type", _lesson, self.task_type) or "chat"
        train_rows = checks.take("train_data_path", _address, self.train_data_path)
        eval_rows = checks.take("eval_data_path", _address, self.eval_data_path) if self.eval_data_path else None
        parts = checks.take("register_to", _name_parts, self.register_to)
        experiment = checks.take("experiment_path", _text, self.experiment_path) if self.experiment_path else None
        prompts = checks.take("eval_prompts", _prompts, self.eval_prompts)
        duration = checks.take("training_duration", _duration, self.training_duration)
        rate = checks.take("learning_rate", _rate, self.learning_rate)
        tokens = checks.take("context_length", lambda value: _tokens(value, limit), self.context_length)
        checks.done()
        name = new_job_name(str(model))
        told = {"duration": duration, "learning_rate": rate, "max_seq_tokens": tokens}
        usual = TrainConfig(
            duration=DEFAULT_DURATION, max_seq_tokens=min(DEFAULT_CONTEXT_LENGTH[lesson], limit or 1 << 30)
        )
        config = (self.config or usual).model_copy(update={k: v for k, v in told.items() if v is not None})
        register_to = ".".join([*(parts or ()), name][:3])
        return JobSpec(
            name=name,
            recipe="text" if lesson == "text" else "chat",
            model=str(model),
            weights=weights,
            train_rows=str(train_rows),
            eval_rows=eval_rows,
            eval_prompts=prompts or (),
            register_to=register_to,
            experiment=experiment or ".".join(parts or ()),
            config=config,
            created_by=user_name(),
            created_at=utc_now(),
            submitted=self._submitted(),
        )

    def warn(self) -> None:
        """Nothing back; what will be done, but hardly as it was meant, is said."""
        if self.learning_rate is not None and float(self.learning_rate) < MIN_USEFUL_LEARNING_RATE:
            warnings.warn(
                f"learning_rate={self.learning_rate} teaches a small model next to nothing: such rates are for Lion on "
                f"models of billions of weights, this is AdamW. Leave it out ({TrainConfig().learning_rate:g})",
                stacklevel=3,
            )
        if self.data_prep_cluster_id is not None:
            warnings.warn("data_prep_cluster_id is not used: rows are read on this machine", stacklevel=3)

    def _submitted(self) -> dict[str, Any]:
        """The arguments as plain JSON values, those that were not given left out."""
        given = {name: value for name, value in self._asdict().items() if value not in (None, "")}
        if self.config is not None:
            given["config"] = self.config.model_dump()
        return {name: value if isinstance(value, _PLAIN) else str(value) for name, value in given.items()}


class _Checks:
    """Faults found so far."""

    def __init__(self) -> None:
        self.wrong: list[InvalidArgument] = []

    def take(self, parameter: str, check: Callable[[Any], T], value: Any) -> T | None:
        """What the check gives; None if it refused, which is noted."""
        try:
            return check(value)
        except Refused as refused:
            self.wrong.append(InvalidArgument(parameter, refused.rule, refused.next_step))
            return None

    def done(self) -> None:
        """Raises ValidationError if a check refused."""
        if self.wrong:
            raise ValidationError.of(self.wrong)


def _text(value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise Refused(f"{value!r} is no text", "give it as text between quotes")
    return str(value).strip()


def _address(value: Any) -> str:
    """A path that is there made absolute, in case somebody else reads it; any other address as it is."""
    address = os.path.expanduser(_text(value))
    return str(Path(address).absolute()) if Path(address).exists() else address


def _lesson(value: Any) -> str:
    name = str(value).strip().upper()
    if name not in RECIPES:
        raise Refused(f'"{value}" is no task type{did_you_mean(name, RECIPES)}', f"use one of {', '.join(RECIPES)}")
    return RECIPES[name]


def _name_parts(value: Any) -> list[str]:
    """Two or three parts of a name."""
    parts = _text(value).split(".")
    if len(parts) not in (2, 3) or not all(map(_NAME_PART.fullmatch, parts)):
        rule = f'"{value}" is neither catalog.schema nor catalog.schema.model, each of letters, digits, _ and -'
        raise Refused(rule, 'for example register_to="main.claims.tickets"')
    return parts


def _prompts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(prompt, str) and prompt.strip() for prompt in value):
        raise Refused(f"{value!r} is no list of texts", 'for example eval_prompts=["Where is my card?"]')
    return tuple(value)


def _duration(value: Any) -> str | None:
    if value is None:
        return None
    try:
        parse_duration(str(value))
    except ValueError as error:
        raise Refused(str(error), 'for example training_duration="3ep"') from None
    return str(value).strip()


def _rate(value: Any) -> float | None:
    if value is None:
        return None
    try:
        rate = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < 1:
        raise Refused(
            f"{value!r} is no number between 0 and 1", f"leave it out, or try {TrainConfig().learning_rate:g}"
        )
    return rate


def _tokens(value: Any, limit: int | None) -> int | None:
    if value is None:
        return None
    if not hasattr(value, "__index__") or isinstance(value, bool) or value < MIN_CONTEXT_LENGTH:
        rule = f"{value!r} is no whole number from {MIN_CONTEXT_LENGTH}"
        raise Refused(rule, "give it in tokens, for example context_length=1024")
    if limit is not None and value > limit:
        raise Refused(f"{value} is more than the {limit} tokens the model takes", f"context_length={limit} at most")
    return operator.index(value)


def _weights(value: Any) -> str | None:
    """Folder of safetensors to begin with."""
    if value is None or value == "":
        return None
    folder = _on_this_machine(_text(value))
    composer = folder.suffix in _COMPOSER or (folder.is_dir() and any(folder.glob("*.distcp")))
    if composer:
        rule = f"{value} is a checkpoint of Composer, which is a pickle: reading it could run any code"
        raise Refused(rule, "convert it to a Hugging Face folder of safetensors where it was made")
    missing = [
        what
        for what, pattern in (
            ("config.json", "config.json"),
            ("safetensors", "*.safetensors"),
            ("a tokenizer", "token*"),
        )
        if not any(folder.glob(pattern))
    ]
    if missing:
        told = f"holds no {', no '.join(missing)}" if folder.is_dir() else "is no folder on this machine"
        raise Refused(f"{folder} {told}", "name a folder with config.json, safetensors and tokenizer, such as a run's")
    return str(folder)


def _on_this_machine(address: str) -> Path:
    """The path that stands for an address of Databricks' file system, or for a local one."""
    if address.startswith("dbfs:/") and not address.startswith("dbfs:/Volumes/"):
        mounted = Path("/dbfs", address.removeprefix("dbfs:/"))
        if not mounted.exists():
            raise Refused(f'"{address}" is in a file system of Databricks', "copy the folder here and name its path")
        return mounted
    try:
        return volume_path(address) if is_volume(address) else Path(address).expanduser().absolute()
    except SmallfirstError as error:
        raise Refused(str(error.args[0]), error.hint or "name a folder on this machine") from None


def _token_limit(model: str) -> int | None:
    """Tokens the model can take; None if its weights are not here yet or do not say. Refuses what cannot be trained."""
    entry = next((e for e in CATALOG if e.name.casefold() == model.casefold()), None)
    cannot = Refused(f'"{model}" cannot be trained: its weights are GGUF or no language model', "fm.get_models()")
    if entry is not None and entry.kind != "transformers":
        raise cannot
    try:
        folder = find_weights(model, download=False)
    except WeightsNotFound as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        if entry is not None or (re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not offline):
            return None  # the job's process may fetch it
        raise Refused(str(error.args[0]), error.hint or "name a local folder of weights") from None
    if folder.is_file():
        raise cannot
    return token_limit(folder)


def token_limit(folder: Path) -> int | None:
    """Longest input in tokens that the weights in a folder were made for; None if their configuration does not say."""
    import json

    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    return found if isinstance(found, int) else None
