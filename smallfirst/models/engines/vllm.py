"""The engine of general models on a GPU: vLLM in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.protocol import Model
from smallfirst.models.servers.vllm import VllmConfig, VllmModel, VllmNotInstalled, find_vllm
from smallfirst.records import parse_record


class VllmEngine:
    """Starts `vllm serve` for a folder of weights. Its settings are those of VllmConfig."""

    def is_installed(self) -> bool:
        return find_vllm() is not None

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        if source.kind == "gguf":
            return Assessment(False, "it needs a folder of safetensors")
        if source.kind == "label":
            return Assessment(False, "its probabilities are not those that were measured")
        if source.kind not in ("weights", "generative"):
            return Assessment(False)
        if source.kind == "generative" and source.certified:
            return Assessment(False, "its confidences are not those that were certified")
        reason = "it answers many requests side by side"
        if source.kind == "weights" and source.engine:
            program = Path(source.settings["program"]) if source.settings.get("program") else None
            if find_vllm(program) is None:
                return Assessment(False, missing=VllmNotInstalled(program))
            reason = "it is the engine named for this model"
        elif not environment.hardware.gpus:
            return Assessment(False, "there is no CUDA GPU")
        elif "vLLM" not in environment.installed:
            return Assessment(False, "it is not installed")
        elif source.kind == "generative":
            return Assessment(False, "it does not run fine-tuned task models")
        return Assessment(True, reason, "a server in a child process", weights=source.path)

    def load(self, source: ModelSource) -> Model:
        config = parse_record(VllmConfig, {**source.settings, "model": source.path}, where="vllm")
        return VllmModel(config, source.prices, name=source.name, schema=source.schema)


VLLM = VllmEngine()
