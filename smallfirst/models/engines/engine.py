"""The interface of an engine, which says whether it can run a model here and loads the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from smallfirst.errors import MissingExtra
from smallfirst.models.engines.hardware import Hardware
from smallfirst.models.manifest import MANIFEST, Manifest, read_manifest
from smallfirst.models.protocol import Model
from smallfirst.pricing.prices import PriceBook

Kind = Literal["address", "gguf", "weights", "label", "generative", "linear", "spans", "other"]


class ModelSource(NamedTuple):
    """A model that is not loaded yet."""

    location: Path | str
    """Folder of a trained model, folder of bare weights, GGUF file, or address of an endpoint."""
    name: str = ""
    """Name to serve it under; by default the model's own."""
    engine: str = ""
    """Registered name of the engine that must run it; empty leaves the choice to `choose_engine`."""
    settings: Mapping[str, Any] = {}
    certified: bool = True
    """True if a certificate may cover the model's confidences, which binds it to the engine they were measured with."""
    answers: tuple[str, ...] | None = None
    """The only answers it may give; None for any."""
    schema: Mapping[str, Any] | None = None
    """JSON schema of every answer; None for free text."""
    prices: PriceBook = PriceBook()

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def manifest(self) -> Manifest:
        """The manifest of a folder that training wrote. Raise ConfigError if it has none."""
        return read_manifest(self.path)

    @property
    def kind(self) -> Kind:
        """`label`, `generative`, `linear`, `spans`: a folder that training wrote · `weights`: one for transformers."""
        if str(self.location).startswith(("http://", "https://")):
            return "address"
        if (self.path / MANIFEST).is_file():
            kinds: dict[str, Kind] = {
                "label_tokens": "label",
                "words": "linear",
                "encoder": "linear",
                "blend": "linear",
            }
            kinds |= {"tagger": "spans", "reader": "spans"}
            return kinds.get(self.manifest.kind, "generative")
        if (self.path / "config.json").is_file():
            return "weights"
        return "gguf" if self.path.suffix == ".gguf" and self.path.is_file() else "other"


class Environment(NamedTuple):
    """The hardware and software that an engine is chosen for."""

    hardware: Hardware
    installed: frozenset[str]


class Assessment(NamedTuple):
    """Whether an engine can run a model here."""

    usable: bool
    reason: str = ""
    """Why it is the right one if it can, and why not if it cannot; empty if the question does not arise."""
    method: str = ""
    """How it runs the model, in a few words."""
    drawback: str = ""
    """Its disadvantage against a preferred engine that can run the model as well."""
    missing: MissingExtra | None = None
    """The error to raise if it only has to be installed, and no other engine can run the model."""
    weights: Path | None = None
    """File or folder that is loaded; None for an address."""
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
