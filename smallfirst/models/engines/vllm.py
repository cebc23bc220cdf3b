"""The engine of fine-tuned models on a GPU: a vLLM that runs already."""

from __future__ import annotations

from pathlib import Path

from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.manifest import ADAPTER_CONFIG
from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import VllmServer
from smallfirst.records import parse_record


class VllmEngine:
    """Joins a vLLM. Its settings are those of VllmServer."""

    def is_installed(self) -> bool:
        return True

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        if source.kind == "weights":
            return Assessment(False, "a general model on a vLLM is an address: large: endpoint")
        if source.kind not in ("label", "generative"):
            return Assessment(False)
        if not (url := source.settings.get("url")):
            return Assessment(False, "its probabilities are not those that were certified; see small: vllm:")
        return Assessment(True, "it is the engine named for this model", f"the vLLM at {url}")

    def load(self, source: ModelSource) -> Model:
        """Return a model that training wrote: an adapter over the base, or its own weights. Raise ConfigError."""
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


VLLM = VllmEngine()
