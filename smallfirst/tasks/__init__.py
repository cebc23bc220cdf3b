"""Kinds of narrow work, by name: `classify`, `extract`, `answer`, `chat`, `call`, and those of installed packages.

A new kind is one file with a subclass of `Task`, and one entry point in the group `smallfirst.task_kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from smallfirst.base.errors import ConfigError
from smallfirst.base.extensions import Registry
from smallfirst.base.records import parse_record
from smallfirst.tasks.task import Task

TASK_KINDS: Registry[type[Task]] = Registry(
    "smallfirst.task_kinds",
    {
        "classify": "smallfirst.tasks.classify:Classify",
        "extract": "smallfirst.tasks.extract:Extract",
        "answer": "smallfirst.tasks.answer:Answer",
        "chat": "smallfirst.tasks.chat:Chat",
        "call": "smallfirst.tasks.call:Call",
    },
    noun="task kind",
)
DEFAULT_KIND = "classify"
"""The kind of a file that names none."""


def parse_task(values: Any) -> Any:
    """Return the task that a mapping describes, else `values`. Raise ValueError if kind or setting is wrong."""
    if not isinstance(values, Mapping):
        return values
    try:
        kind = TASK_KINDS.get(str(values.get("kind", DEFAULT_KIND)))
        return parse_record(kind, values, where="not a task")
    except ConfigError as error:
        raise ValueError(str(error)) from None


AnyTask = Annotated[pydantic.SerializeAsAny[Task], pydantic.BeforeValidator(parse_task)]
"""A task of any kind as a field of a record."""
