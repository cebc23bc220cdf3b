"""The prompt of the large model in a file of its own: written by hand, or by `smallfirst tune-prompt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from smallfirst.files import write_atomically
from smallfirst.records import Record, parse_record, read_yaml


class PromptSearch(Record):
    """What the search for a prompt took and found; it is paid once, as training is."""

    made_at: str
    """Date of its end, YYYY-MM-DD."""
    model: str
    """The model that answered."""
    proposer: str
    """The model that proposed instructions; empty if none was proposed."""
    n_requests: int = pydantic.Field(ge=0)
    """Requests to both, those of an interrupted search and of earlier searches included."""
    prompt_tokens: int = pydantic.Field(ge=0)
    """Tokens that both read."""
    completion_tokens: int = pydantic.Field(ge=0)
    """Tokens that both wrote."""
    cost_usd: float = pydantic.Field(ge=0, allow_inf_nan=False)
    """Price of all requests in USD."""
    n_rows: int
    """Selection rows on which prompts were compared."""
    n_right_before: int
    """Right answers to them with the prompt as it was."""
    n_right: int
    """Right answers to them with this one: chosen on the same rows, so too high an estimate of its accuracy."""


class Prompt(Record):
    """What the large model is told about the job, and how many solved rows it is shown."""

    instructions: str = pydantic.Field(min_length=1)
    """The job, in place of `about`; the allowed answers and their format follow it, as without a file."""
    shots_per_label: int | None = pydantic.Field(default=None, ge=0)
    """Takes the place of `large.shots_per_label`."""
    nearest: int | None = pydantic.Field(default=None, ge=0)
    """Takes the place of `large.nearest`."""
    search: PromptSearch | None = None
    """How it was found; None for a prompt written by hand."""

    def save(self, path: Path) -> Path:
        """Write the prompt as YAML, its instructions as lines that a person can edit."""
        content = yaml.dump(self.model_dump(), Dumper=BlockDumper, sort_keys=False, allow_unicode=True, width=110)
        return write_atomically(path, content.encode())


class BlockDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


BlockDumper.add_representer(str, _text)
BlockDumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def read_prompt(path: Path) -> Prompt:
    """Return the prompt in a file. Raise ConfigError if it is not there or has other settings."""
    hint = "smallfirst tune-prompt task.yaml   writes one; or remove large.prompt from task.yaml"
    return parse_record(Prompt, read_yaml(path, hint=hint), where=str(path))


def with_prompt_read(large: Any, folder: Path) -> Any:
    """Return the settings of `large:` with the file that `prompt` names read, its numbers of solved rows in place."""
    if not (isinstance(large, Mapping) and isinstance(large.get("prompt"), str)):
        return large
    prompt = read_prompt(folder / large["prompt"])
    shots = prompt.model_dump(include={"shots_per_label", "nearest"}, exclude_none=True)
    return {**large, **shots, "prompt": prompt}
