"""The engines that come with the package: each runs models of some kinds and imports what it needs to load one."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from smallfirst.base.errors import MissingExtra
from smallfirst.base.records import parse_record
from smallfirst.models.label_model import LabelModel
from smallfirst.models.loading import Kind, ModelSource, load
from smallfirst.models.manifest import ADAPTER_CONFIG
from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import EndpointConfig, VllmServer

_SPAN_SCORERS = {
    "tagger": "smallfirst.models.spans.tagger:Tagger",
    "reader": "smallfirst.models.spans.reader:Reader",
}
"""The scorer of each kind of manifest, imported to be loaded."""


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
    """Return an encoder that marks the answer in the text."""
    from smallfirst.models.spans.model import SpanModel

    module, _, name = _SPAN_SCORERS[source.manifest.kind].partition(":")
    scorer = getattr(importlib.import_module(module), name).load(source.path, source.manifest)
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
