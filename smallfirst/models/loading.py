"""Load a model, whatever it is: found by what lies at its place, run by the first engine that can.

Each engine imports what it needs to load a model. To add one, register an instance with the methods of `Engine` in the
entry-point group `smallfirst.engines`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.base.extensions import Registry
from smallfirst.base.records import parse_record
from smallfirst.base.sync import run_in_thread
from smallfirst.models.label_model import LabelModel
from smallfirst.models.manifest import ADAPTER_CONFIG, MANIFEST, Manifest, read_manifest
from smallfirst.models.pricing import MachinePrice, PriceBook
from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import EndpointConfig, VllmServer

Kind = Literal["address", "gguf", "weights", "label", "generative", "linear", "spans", "other"]
_KINDS: dict[str, Kind] = {
    "label_tokens": "label",
    "words": "linear",
    "encoder": "linear",
    "blend": "linear",
    "tagger": "spans",
    "reader": "spans",
    "joined": "spans",
    "caller": "spans",
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


class BuiltIn(NamedTuple):
    """An engine of the package."""

    kinds: tuple[Kind, ...]
    load: Callable[[ModelSource], Model]
    by_name_only: bool = False
    """True if it runs only models that name it."""

    def runs(self, source: ModelSource) -> bool:
        return source.kind in self.kinds and (bool(source.engine) or not self.by_name_only)


def _endpoint(source: ModelSource) -> Model:
    """Return an OpenAI-compatible address, not connected yet. Raise ConfigError without its key, PriceUnknown."""
    from smallfirst.models.remote.model import EndpointModel

    settings = {**source.settings, "base_url": source.location}
    return EndpointModel(parse_record(EndpointConfig, settings, where="endpoint"), source.prices)


def _linear(source: ModelSource) -> Model:
    """Return a linear model, or a blend with its members, each run by the engine that is chosen for it."""
    from smallfirst.models.linear.blend import MEMBERS_FOLDER, BlendModel
    from smallfirst.models.linear.classifier import LabelSetModel, load_classifier

    manifest, folder = source.manifest, source.path / MEMBERS_FOLDER
    if manifest.kind == "blend":
        members = {name: load(source._replace(location=folder / name)) for name in manifest.member_weights}
        return BlendModel(members, manifest, name=source.name)
    kind = LabelModel if manifest.task.closed else LabelSetModel
    return kind(load_classifier(source.path, manifest), manifest, name=source.name, price=source.prices.machine)


def _spans(source: ModelSource) -> Model:
    """Return what chooses its answer in the text, alone or joined with a language model."""
    from smallfirst.models.spans.model import SpanModel

    if source.manifest.kind == "joined":
        from smallfirst.models.linear.blend import MEMBERS_FOLDER
        from smallfirst.models.spans.joined import MEMBERS, JoinedModel

        members = [load(source._replace(location=source.path / MEMBERS_FOLDER / name)) for name in MEMBERS]
        return JoinedModel(members, source.manifest, name=source.name)
    if source.manifest.kind == "tagger":
        from smallfirst.models.spans.tagger import Tagger as SpanScorer
    elif source.manifest.kind == "caller":
        from smallfirst.models.calls.caller import FunctionCaller as SpanScorer  # type: ignore[assignment]
    else:
        from smallfirst.models.spans.reader import Reader as SpanScorer  # type: ignore[assignment]
    scorer = SpanScorer.load(source.path, source.manifest)
    return SpanModel(scorer, source.manifest, name=source.name, price=source.prices.machine)


def _llama_cpp(source: ModelSource) -> Model:
    """Return a GGUF file, run in a child process."""
    from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel

    config = parse_record(LlamaCppConfig, {**source.settings, "path": source.path}, where="llama.cpp")
    return LlamaCppModel(config, source.prices, name=source.name, answers=source.answers, schema=source.schema)


def _vllm(source: ModelSource) -> Model:
    """Return a fine-tuned model on a vLLM: an adapter over its base, or weights of its own."""
    from smallfirst.models.servers.vllm import VllmLabelModel, VllmRoute

    folder, manifest, price = source.path, source.manifest, source.prices.machine
    server = parse_record(VllmServer, source.settings, where="small: vllm")
    name, is_adapter = source.name or manifest.task.name, (folder / ADAPTER_CONFIG).is_file()
    base = Path(manifest.base) if is_adapter else folder
    route = VllmRoute(server, name=name, weights=folder, adapter=is_adapter)
    tokenizer = folder if (folder / "tokenizer.json").is_file() else base
    if source.kind == "label":
        return VllmLabelModel(route, tokenizer, manifest, name=name, price=price)
    from smallfirst.models.servers.vllm_generation import generative_model

    return generative_model(route, tokenizer, manifest, base=base, name=name, price=price)


def _pytorch(source: ModelSource) -> Model:
    """Return a fine-tuned model or bare weights in this process, where concurrent requests share its batches."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise MissingExtra(f"running {source.location} with PyTorch", "train")
    from smallfirst.models.generation.generator import Generator
    from smallfirst.models.generation.model import GenerativeModel

    folder, name, price = source.path, source.name, source.prices.machine
    if source.kind == "weights":
        chat = Generator.load(folder, chat=True)
        return GenerativeModel.published(chat, name=name or folder.name, price=price, schema=source.schema)
    manifest = source.manifest
    name = name or manifest.task.name
    if source.kind == "label":
        from smallfirst.models.local.label_scorer import LabelScorer

        return LabelModel(LabelScorer.load(folder, manifest), manifest, name=name, price=price)
    generator = Generator.load(folder, chat=manifest.kind == "chat")
    return GenerativeModel.fine_tuned(generator, manifest, name=name, price=price)


ENDPOINT = BuiltIn(("address",), _endpoint)
LINEAR = BuiltIn(("linear",), _linear)
SPANS = BuiltIn(("spans",), _spans)
LLAMA_CPP = BuiltIn(("gguf",), _llama_cpp)
VLLM = BuiltIn(("label", "generative"), _vllm, by_name_only=True)
PYTORCH = BuiltIn(("weights", "label", "generative"), _pytorch)

ENGINES: Registry[Engine] = Registry(
    "smallfirst.engines",
    {
        name: f"smallfirst.models.loading:{variable}"
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


def most_answers(folder: Path) -> int | None:
    """Return how many requests of a conversation the model in a folder answers; None where it does not count them."""
    if not (folder / MANIFEST).is_file() or read_manifest(folder).kind != "caller":
        return None
    from smallfirst.models.calls.caller import read_most

    return read_most(folder)
