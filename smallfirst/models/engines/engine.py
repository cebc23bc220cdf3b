"""What an engine is: it says whether it can run a model here, and loads the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from smallfirst.models.engines.hardware import Hardware
from smallfirst.models.manifest import ADAPTER_CONFIG, MANIFEST, Manifest, read_manifest
from smallfirst.models.protocol import Model
from smallfirst.pricing import PriceBook

WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.npz")


class ModelSource(NamedTuple):
    """A model that is not loaded yet."""

    location: Path | str
    """Folder of a trained model, folder of bare weights, GGUF file, or address of an endpoint."""
    name: str = ""
    """Name to serve it under; by default the model's own."""
    engine: str = ""
    """Registered name of the engine that must run it; empty leaves the choice to `choose_engine`."""
    settings: Mapping[str, Any] = {}
    """Settings of that engine."""
    certified: bool = True
    """True if a certificate may cover the model's confidences, which binds it to the engine they were measured with."""
    answers: tuple[str, ...] | None = None
    """The only answers it may give; None for any."""
    schema: Mapping[str, Any] | None = None
    """JSON schema of every answer; None for free text."""
    prices: PriceBook = PriceBook()
    """What answers cost."""

    @property
    def is_address(self) -> bool:
        """True for an endpoint."""
        return isinstance(self.location, str) and self.location.startswith(("http://", "https://"))

    @property
    def path(self) -> Path:
        """The folder or file."""
        return Path(self.location)

    @property
    def is_gguf(self) -> bool:
        """True for a GGUF file."""
        return not self.is_address and self.path.suffix == ".gguf" and self.path.is_file()

    @property
    def is_bare_weights(self) -> bool:
        """True for a folder of weights as transformers writes it, without a manifest of smallfirst."""
        return not self.is_address and (self.path / "config.json").is_file() and self.manifest is None

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of a folder that training wrote; None for anything else."""
        return None if self.is_address or not (self.path / MANIFEST).is_file() else read_manifest(self.path)


class Environment(NamedTuple):
    """What an engine is chosen for."""

    hardware: Hardware
    """The machine."""
    installed: frozenset[str]
    """Names of the engines that are installed."""


class Assessment(NamedTuple):
    """Whether an engine can run a model here."""

    usable: bool
    """True if it can."""
    reason: str = ""
    """Why it is the right one if it can, and why not if it cannot; empty if the question does not arise."""
    method: str = ""
    """How it runs the model, in a few words."""
    drawback: str = ""
    """What speaks against it where a preferred engine can run the model as well."""
    install_hint: str = ""
    """The command that would make it usable, if it only has to be installed."""
    weights: Path | None = None
    """File or folder that is loaded; None for an address."""
    weights_bytes: int = 0
    """Memory for the weights on this machine."""
    threads: int = 0
    """Threads that compute; 0 where another machine or a GPU does."""


class Engine(Protocol):
    """One way to run models, registered in the entry-point group `smallfirst.engines`."""

    def is_installed(self) -> bool:
        """Return True if what it needs is installed. Import nothing heavy."""

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        """Return whether it can run the model. Load nothing."""

    def load(self, source: ModelSource) -> Model:
        """Return the model. Raise ConfigError for wrong settings, MissingExtra if something is not installed."""


def weights_bytes(folder: Path) -> int:
    """Return the size of the weights in a folder; for an adapter, its base included."""
    own = _total_bytes(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return own
    return own + (_total_bytes(Path(base).glob("*.safetensors")) if Path(base).is_dir() else 0)


def _total_bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
