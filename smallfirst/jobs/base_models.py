"""Check before a job starts whether its base model can be trained, and how long its rows may be."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

from smallfirst.data.sources.volumes import is_volume, volume_path
from smallfirst.errors import ConfigError, MissingExtra, WeightsNotFound
from smallfirst.models.catalog import CATALOG, find_weights, pulled_path

_PICKLED = (".pt", ".symlink", ".distcp")
"""Suffixes of Composer's checkpoints."""


def require_training_packages() -> None:
    """Raise MissingExtra where nothing can be trained."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra("Fine-tuning", "train")


def trainable_models() -> dict[str, int | None]:
    """Return the longest input in tokens of each trainable model of the catalogue; None until its weights are here."""
    folders = {entry.name: pulled_path(entry) for entry in CATALOG if entry.kind == "transformers"}
    return {name: _context_length(folder) for name, folder in folders.items()}


def context_length(model: str) -> int | None:
    """Return the longest input in tokens, if known. Raise ConfigError if untrainable, WeightsNotFound if absent."""
    entry = next((e for e in CATALOG if e.name.casefold() == model.casefold()), None)
    untrainable = ConfigError(
        f'"{model}" cannot be trained: its weights are GGUF or no language model',
        hint="choose one of foundation_model.get_models(), or a folder of safetensors",
    )
    if entry is not None and entry.kind != "transformers":
        raise untrainable
    try:
        folder = find_weights(model, download=False)
    except WeightsNotFound:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        if entry is not None or (re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not offline):
            return None  # the job's process may fetch it
        raise
    if folder.is_file():
        raise untrainable
    return _context_length(folder)


def _context_length(folder: Path) -> int | None:
    config = folder / "config.json"
    if not config.is_file():
        return None
    found = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def weights_folder(address: str) -> Path:
    """Return the folder of safetensors at a path or volume. Raise ConfigError if absent, incomplete or pickled."""
    folder = _local_path(address)
    if folder.suffix in _PICKLED or (folder.is_dir() and any(folder.glob("*.distcp"))):
        raise ConfigError(
            f"{address} is a checkpoint of Composer, which is a pickle: reading it could run any code",
            hint="convert it to a Hugging Face folder of safetensors where it was made",
        )
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder on this machine", hint="name a folder of safetensors")
    parts = {"config.json": "config.json", "safetensors": "*.safetensors", "tokenizer": "token*"}
    missing = [part for part, pattern in parts.items() if not any(folder.glob(pattern))]
    if missing:
        raise ConfigError(
            f"{folder} holds no {', no '.join(missing)}",
            hint="name a folder with config.json, safetensors and tokenizer, such as a run's",
        )
    return folder


def _local_path(address: str) -> Path:
    if address.startswith("dbfs:/") and not address.startswith("dbfs:/Volumes/"):
        mounted = Path("/dbfs", address.removeprefix("dbfs:/"))
        if not mounted.exists():
            raise ConfigError(
                f'"{address}" is in a file system of Databricks', hint="copy the folder here and name its path"
            )
        return mounted
    return volume_path(address) if is_volume(address) else Path(address).expanduser().absolute()
