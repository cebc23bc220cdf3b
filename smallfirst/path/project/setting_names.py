"""What other tools call a setting of task.yaml, or where people look for it, and the setting that they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import get_args

import pydantic

_OTHER_NAMES = {
    "small.training.duration": "epochs num_epochs n_epochs num_train_epochs max_epochs steps max_steps iterations",
    "small.training.learning_rate": "lr",
    "small.training.batch_tokens": "batch_size train_batch_size per_device_train_batch_size",
    "small.training.micro_tokens": "micro_batch_size gradient_accumulation_steps",
    "small.training.max_seq_tokens": "max_tokens max_length max_seq_length model_max_length cutoff_len max_len",
    "small.training.lora_rank": "lora_r rank r",
    "small.training.method": "lora use_lora peft adapter qlora load_in_4bit use_qlora quantization",
    "small.training.warmup_share": "warmup warmup_ratio warmup_steps",
    "small.training.patience": "early_stopping early_stopping_patience",
    "small.training.clip_norm": "max_grad_norm gradient_clipping",
    "small.training.seed": "random_seed random_state",
    "small.base": "model base_model small_model model_name model_name_or_path model_id student",
    "large.endpoint.model": "large_model teacher_model fallback fallback_model llm",
    "large.endpoint.base_url": "url api_base endpoint_url openai_base_url",
    "large.endpoint.api_key_env": "api_key key token openai_api_key",
    "gate.accuracy_at_least": "threshold accuracy min_accuracy target_accuracy min_score",
    "gate.macro_f1_at_least": "f1 min_f1 macro_f1",
    "gate.p95_ms_at_most": "latency latency_ms max_latency max_latency_ms max_p95_ms",
    "gate.routed.cost_at_most": "cost max_cost max_price max_usd_per_1k",
    "routing.guarantee.max_error": "error_rate max_error_rate",
    "routing.budget": "max_escalation_rate",
    "data.columns.label": "labels_column label_col class_column class_col label_column y",
    "data.columns.target": "target_column target_col output_column",
    "data.columns.text": "text_column input_column input_col input x",
    "data.columns.question": "question_column question_field",
    "data.columns.answer": "answer_column answer_field",
    "data.columns.group": "group_by groups",
    "data.train": "train_file train_path train_data training_data dataset data_path data_file file path rows",
    "data.validation": "validation_file validation_data val valid dev eval eval_file eval_data val_file",
    "data.test": "test_file test_data test_path",
    "labels": "classes categories label_names choices",
    "kind": "task task_type type task_kind",
    "about": "description instructions instruction system_prompt system prompt prompt_template",
    "register_to": "registered_model_name registry_name register_as output_model",
    "ladder": "candidates models",
}
_MEANT = {name: setting for setting, names in _OTHER_NAMES.items() for name in names.split()}


def meant_setting(record: type[pydantic.BaseModel], loc: Sequence[int | str]) -> str:
    """Return '; write …' with the setting of `record` that `loc` probably stands for, or an empty string.

    A setting of this name below the same place comes first, then what other tools call so, then one elsewhere.
    """
    name, place = str(loc[-1]), tuple(map(str, loc[:-1]))
    paths = [path for path in setting_paths(record) if path[-1] == name or ".".join(path) == name]
    paths.sort(key=lambda path: (path[: len(place)] != place, len(path)))
    near = bool(paths and place) and paths[0][: len(place)] == place
    other = None if near else _MEANT.get(name.lower())
    if not other and not paths:
        return ""
    flow = "…"
    for group in reversed(other.split(".") if other else paths[0]):
        flow = f"{group}: {flow}" if flow == "…" else f"{group}: {{{flow}}}"
    return f"; write {flow}"


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
