"""The engine of models on a GPU: vLLM in an environment of its own, or where it runs already."""

from __future__ import annotations

from pathlib import Path

from smallfirst.models.catalog import find_weights
from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.manifest import ADAPTER_CONFIG
from smallfirst.models.protocol import Model
from smallfirst.models.servers.vllm import VllmConfig, VllmModel, VllmNotInstalled, context_of, find_vllm
from smallfirst.records import parse_record


class VllmEngine:
    """Starts `vllm serve` for a folder of weights, or joins one. Its settings are those of VllmConfig."""

    def is_installed(self) -> bool:
        return find_vllm() is not None

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        if source.kind == "gguf":
            return Assessment(False, "it needs a folder of safetensors")
        if source.kind not in ("weights", "label", "generative"):
            return Assessment(False)
        reason = "it answers many requests side by side"
        if source.engine:
            program = Path(source.settings["program"]) if source.settings.get("program") else None
            if not source.settings.get("url") and find_vllm(program) is None:
                return Assessment(False, missing=VllmNotInstalled(program))
            reason = "it is the engine named for this model"
        elif source.kind != "weights":
            return Assessment(False, "its probabilities are not those that were certified; see small: vllm:")
        elif not environment.hardware.gpus:
            return Assessment(False, "there is no CUDA GPU")
        elif "vLLM" not in environment.installed:
            return Assessment(False, "it is not installed")
        where = f"the vLLM at {url}" if (url := source.settings.get("url")) else "a server in a child process"
        return Assessment(True, reason, where, weights=None if url else source.path)

    def load(self, source: ModelSource) -> Model:
        """Return the model, its server not started yet. Raise ConfigError, VllmNotInstalled, WeightsNotFound."""
        if source.kind != "weights":
            return _fine_tuned(source)
        settings = {"lora_rank": 0, "head_dtype": "model", **source.settings, "model": source.path}
        config = parse_record(VllmConfig, settings, where="vllm")
        return VllmModel(config, source.prices, name=source.name, schema=source.schema)


def _fine_tuned(source: ModelSource) -> Model:
    """Return a model that training wrote: an adapter shares the vLLM of its base, other weights have their own."""
    from smallfirst.models.servers.vllm_models import VllmLabelModel, VllmRoute

    folder, manifest = source.path, source.manifest
    adapter = folder if (folder / ADAPTER_CONFIG).is_file() else None
    base = folder
    if adapter is not None:
        base = Path(manifest.base) if source.settings.get("url") else find_weights(manifest.base)
    rank = {} if adapter else {"lora_rank": 0}
    config = parse_record(VllmConfig, {**source.settings, **rank, "model": base}, where="small: vllm")
    name = source.name or manifest.task.name
    route, price = VllmRoute(config, name=name, adapter=adapter), source.prices.machine
    tokens_of = folder if (folder / "tokenizer.json").is_file() else base
    if source.kind == "label":
        return VllmLabelModel(route, tokens_of, manifest, name=name, price=price)
    from smallfirst.models.servers.vllm_generation import generative_model

    context = config.context_tokens or context_of(base)
    return generative_model(route, tokens_of, manifest, name=name, price=price, context_tokens=context)


VLLM = VllmEngine()
