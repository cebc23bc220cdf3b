"""The manifest of a model folder: kind, task, label tokens, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from smallfirst.errors import ConfigError
from smallfirst.files import write_atomically
from smallfirst.models.confidence import Calibration
from smallfirst.records import Record
from smallfirst.tasks import AnyTask

MANIFEST = "smallfirst.json"
ADAPTER_CONFIG = "adapter_config.json"
"""The file that marks a folder of LoRA adapters saved by peft."""


class Manifest(Record):
    """The description of a model, written last into its folder, so a folder without one is not a model."""

    kind: Literal["codes", "writes", "chats", "words", "encoder"]
    """`codes`: a causal model whose label tokens are scored at one position · `writes`: one that generates · `chats`:
    one prompted with whole conversations through its own chat template · `words`, `encoder`: linear models."""
    task: AnyTask
    """The task it was trained for."""
    base: str
    """Base model by name; empty for `words`."""
    codes: tuple[int, ...] = ()
    """Token id of each label, in label order (`codes` only)."""
    temperature: float = 1.0
    """Divides the label log-probabilities before they are reported; fitted on validation rows."""
    calibration: Calibration = Calibration()
    """From the tokens of a generated answer to the probability that it is right (`writes` only)."""
    max_tokens: int = 512
    """Longest prompt; the middle of a longer text is cut."""
    weights_fingerprint: str = ""
    """Changes with the weights."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a model folder."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a model folder. Raise ConfigError if it has none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{folder} has no {MANIFEST}, so it is not a model of smallfirst")
    return Manifest.load(path)
