"""What a model folder tells about itself: kind, task, code tokens, calibration.

Written last, so a folder without one is not a model.
"""

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
    """What a model folder tells about itself; written last, so a folder without one is not a model."""

    kind: Literal["codes", "writes", "chats", "words", "encoder"]
    """`codes`: a causal model read at one position · `writes`: one that writes · `chats`: one that is asked
    through its own chat template, whole conversations included · `words`, `encoder`: linear models."""
    task: AnyTask
    """The task it was made for."""
    base: str
    """Base model by name; empty for `words`."""
    codes: tuple[int, ...] = ()
    """Token id of each label, in label order (`codes` only)."""
    temperature: float = 1.0
    """Divides the label log-probabilities before they are reported; fitted on validation rows."""
    calibration: Calibration = Calibration()
    """Turns what a written answer's tokens say into a probability of being right (`writes` only)."""
    max_tokens: int = 512
    """Longest prompt in tokens; longer texts lose their middle."""
    weights_fingerprint: str = ""
    """Changes with the weights."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a model folder."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises ConfigError if it has none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {MANIFEST}, so it is not a model of smallfirst")
    return Manifest.load(path)
