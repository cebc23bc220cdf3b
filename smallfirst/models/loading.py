"""Load a model, whatever it is: found by what lies at its place, run by the first engine that can.

To add an engine, register an instance with the methods of `Engine` in the entry-point group `smallfirst.engines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from smallfirst.base.errors import ConfigError
from smallfirst.base.extensions import Registry
from smallfirst.base.sync import run_in_thread
from smallfirst.models.manifest import MANIFEST, Manifest, read_manifest
from smallfirst.models.pricing import MachinePrice, PriceBook
from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import VllmServer

Kind = Literal["address", "gguf", "weights", "label", "generative", "linear", "spans", "other"]
_KINDS: dict[str, Kind] = {
    "label_tokens": "label",
    "words": "linear",
    "encoder": "linear",
    "blend": "linear",
    "tagger": "spans",
    "reader": "spans",
}
"""Kinds of manifests whose models do not generate."""


class ModelSource(NamedTuple):
    """A model that is not loaded yet."""

    location: Path | str
    """Folder of a trained model, folder of bare weights, GGUF file, or address of an endpoint."""
    name: str = ""
    """Name to serve it under; by default the model's own."""
    engine: str = ""
    """Registered name of the engine that must run it; empty leaves the choice to `choose_engine`."""
    settings: Mapping[str, Any] = {}
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
            return _KINDS.get(self.manifest.kind, "generative")
        if (self.path / "config.json").is_file():
            return "weights"
        return "gguf" if self.path.suffix == ".gguf" and self.path.is_file() else "other"


class Engine(Protocol):
    """One way to run models."""

    def runs(self, source: ModelSource) -> bool:
        """Return True if the model is of a kind that it runs. Load nothing."""

    def load(self, source: ModelSource) -> Model:
        """Return the model. Raise ConfigError for wrong settings, MissingExtra if something is not installed."""


ENGINES: Registry[Engine] = Registry(
    "smallfirst.engines",
    {
        name: f"smallfirst.models.engines:{variable}"
        for name, variable in {
            "endpoint": "ENDPOINT",
            "linear": "LINEAR",
            "spans": "SPANS",
            "llama.cpp": "LLAMA_CPP",
            "vLLM": "VLLM",
            "PyTorch": "PYTORCH",
        }.items()
    },
    noun="engine",
)
"""All engines by name, preferred ones first."""


def choose_engine(source: ModelSource) -> str:
    """Return the name of the engine that the model names, else of the first that runs it. Raise ConfigError."""
    if source.engine:
        if not ENGINES.get(source.engine).runs(source):
            raise ConfigError(f"{source.location} cannot be run by {source.engine}: it is no model of its kind")
        return source.engine
    chosen = next((name for name, engine in ENGINES if engine.runs(source)), None)
    if chosen is None:
        raise ConfigError(
            f"{source.location} is not a model: neither a model folder, a folder of weights, a GGUF file nor an address"
        )
    return chosen


def load(source: ModelSource) -> Model:
    """Return the model, run by the engine that `choose_engine` finds for it."""
    return ENGINES.get(choose_engine(source)).load(source)


def load_model(
    folder: Path, *, name: str = "", price: MachinePrice | None = None, vllm: VllmServer | None = None
) -> Model:
    """Return the model in a folder that training or the registry wrote, ready to answer, or raise ConfigError.

    With `vllm` that runs language models; linear ones and encoders stay in this process.
    """
    read_manifest(folder)  # raises the error that names what is missing
    source = ModelSource(folder, name, prices=PriceBook(machine=price or MachinePrice()))
    if vllm is not None and source.kind in ("label", "generative"):
        source = source._replace(engine="vLLM", settings=vllm.model_dump(exclude_defaults=True))
    return run_in_thread(lambda: load(source))
