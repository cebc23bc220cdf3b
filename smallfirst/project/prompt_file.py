"""The prompt of the large model in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from smallfirst.records import Record, parse_record, read_yaml


class Prompt(Record):
    """What the large model is told about the job, and how many solved rows it is shown."""

    instructions: str = pydantic.Field(min_length=1)
    """The job, in place of `about`; the allowed answers and their format follow it, as without a file."""
    shots_per_label: int | None = pydantic.Field(default=None, ge=0)
    """Takes the place of `large.shots_per_label`."""
    nearest: int | None = pydantic.Field(default=None, ge=0)
    """Takes the place of `large.nearest`."""


class BlockDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


BlockDumper.add_representer(str, _text)
BlockDumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def read_prompt(path: Path) -> Prompt:
    """Return the prompt in a file. Raise ConfigError if it is not there or has other settings."""
    return parse_record(
        Prompt, read_yaml(path, hint="write  instructions: …  into it, or remove large.prompt"), where=str(path)
    )


def with_prompt_read(large: Any, folder: Path) -> Any:
    """Return the settings of `large:` with the file that `prompt` names read, its numbers of solved rows in place."""
    if not (isinstance(large, Mapping) and isinstance(large.get("prompt"), str)):
        return large
    prompt = read_prompt(folder / large["prompt"])
    shots = prompt.model_dump(include={"shots_per_label", "nearest"}, exclude_none=True)
    return {**large, **shots, "prompt": prompt}
