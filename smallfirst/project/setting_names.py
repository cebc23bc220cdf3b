"""What other tools call a setting of task.yaml, or where people look for it, and the setting that they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args

import pydantic
import yaml

SAME = "{}"
"""Stands for the value as it was written; capitals stand for a value that the reader has to give."""

_OTHER_NAMES = {
    "small.training.duration: {}ep": "epochs num_epochs n_epochs num_train_epochs max_epochs",
    "small.training.duration: {}ba": "steps max_steps num_steps iterations",
    "small.training.learning_rate: {}": "lr",
    "small.training.batch_tokens: TOKENS": "batch_size train_batch_size per_device_train_batch_size",
    "small.training.micro_tokens: TOKENS": "micro_batch_size gradient_accumulation_steps",
    "small.training.max_seq_tokens: {}": "max_tokens max_length max_seq_length model_max_length cutoff_len max_len",
    "small.training.lora_rank: {}": "lora_r rank r",
    "small.training.method: qlora": "qlora load_in_4bit use_qlora quantization",
    "small.training.method: lora": "lora use_lora peft adapter",
    "small.training.warmup_share: SHARE": "warmup warmup_ratio warmup_steps",
    "small.training.patience: EPOCHS": "early_stopping early_stopping_patience",
    "small.training.clip_norm: {}": "max_grad_norm gradient_clipping",
    "small.training.seed: {}": "random_seed random_state",
    "small.base: {}": "model base_model small_model model_name model_name_or_path model_id student",
    "large.endpoint.model: {}": "model large_model teacher_model fallback fallback_model llm",
    "large.endpoint.base_url: {}": "url api_base endpoint_url openai_base_url",
    "large.endpoint.api_key_env: VARIABLE": "api_key key token openai_api_key",
    "gate.accuracy_at_least: {}": "threshold accuracy min_accuracy target_accuracy min_score",
    "gate.macro_f1_at_least: {}": "f1 min_f1 macro_f1",
    "gate.p95_ms_at_most: {}": "latency latency_ms max_latency max_latency_ms max_p95_ms",
    "routing.guarantee.max_error: {}": "error_rate max_error_rate",
    "gate.routed.cost_at_most: SHARE_OF_LARGE": "cost max_cost max_price max_usd_per_1k",
    "routing.budget: {usd: USD, per: day}": "max_escalation_rate",
    "data.columns.label: {}": "target_column target_col labels_column label_col class_column class_col y",
    "data.columns.target: {}": "target_column target_col output_column",
    "data.columns.text: {}": "input_column input_col input x",
    "data.columns.group: {}": "group_by groups",
    "data.train: {}": "train_file train_path train_data training_data dataset data_path data_file file path rows",
    "data.validation: {}": "validation_file validation_data val valid dev eval eval_file eval_data val_file",
    "data.test: {}": "test_file test_data test_path",
    "labels: {}": "classes categories label_names choices",
    "kind: KIND": "task task_type type task_kind",
    "about: {}": "description instructions instruction system_prompt system prompt_template",
    "register_to: {}": "registered_model_name registry_name register_as output_model",
    "ladder: {}": "candidates models",
}
"""Other names of each setting, with the value that it then gets."""


def meant_setting(record: type[pydantic.BaseModel], loc: Sequence[int | str], value: Any) -> str:
    """Return '; write …' with the setting of `record` that `loc` probably stands for, or an empty string.

    A setting of this name below the same place comes first, then what other tools call so, then one elsewhere.
    """
    name, place = str(loc[-1]), tuple(map(str, loc[:-1]))
    paths = [path for path in setting_paths(record) if path[-1] == name or ".".join(path) == name]
    paths = sorted(paths, key=lambda path: (path[: len(place)] != place, len(path)))
    near = paths[0] if paths and paths[0][: len(place)] == place and place else None
    other = [] if near else list(_called_otherwise(name))
    found = other or [(".".join(path), SAME) for path in paths[:1]] or list(_column(record, name))
    told = [_written(path, template, value, as_path="." not in name) for path, template in found]
    return f"; write {' or '.join(told)}" if told else ""


@cache
def setting_paths(record: type[pydantic.BaseModel]) -> tuple[tuple[str, ...], ...]:
    """Return the path of every setting of a record and of the records in it, in their order."""
    return tuple(_paths(record))


def _paths(record: type[pydantic.BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in record.model_fields.items():
        yield (*before, name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, pydantic.BaseModel):
                yield from _paths(part, (*before, name))


def _called_otherwise(name: str) -> Iterator[tuple[str, str]]:
    for setting, names in _OTHER_NAMES.items():
        if name.lower() in names.split():
            path, _, template = setting.partition(": ")
            yield path, template


def _column(record: type[pydantic.BaseModel], name: str) -> Iterator[tuple[str, str]]:
    """Yield the column that `question_column`, `answer_field` and the like name."""
    column = ("data", "columns", re.sub("_(column|col|field|key)$", "", name))
    if column in setting_paths(record):
        yield ".".join(column), SAME


def _written(path: str, template: str, value: Any, *, as_path: bool) -> str:
    """Return the setting with its value, `as_path` and, where it is nested, as it stands in the file."""
    given = _inline(value)
    text = template.replace(SAME, given) if given else "…"
    *groups, last = path.split(".")
    flow = f"{last}: {text}"
    for group in reversed(groups):
        flow = f"{group}: {{{flow}}}"
    if not as_path:
        return flow
    return f"{path}: {text}" + (f"   ({flow})" if groups else "")


def _inline(value: Any) -> str:
    """Return a value as YAML in one line; empty where it is none or would be long."""
    if value is None or isinstance(value, Mapping):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).removesuffix("...\n").strip()
    return text if len(text) <= 60 else ""
