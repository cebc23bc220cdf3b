"""The engine of general models on a GPU: vLLM in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from smallfirst.models.engines.engine import Assessment, Environment, ModelSource, weights_bytes
from smallfirst.models.protocol import Model
from smallfirst.models.servers.vllm import VllmConfig, VllmModel, VllmNotInstalled, find_vllm
from smallfirst.records import parse_record


class VllmEngine:
    """Starts `vllm serve` for a folder of weights. Its settings are those of VllmConfig."""

    def is_installed(self) -> bool:
        """Return True if `vllm` is on PATH."""
        return find_vllm() is not None

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        """Return that it can for bare weights if there is a GPU, or if the source names this engine."""
        if source.is_gguf:
            return Assessment(False, "it needs a folder of safetensors")
        if source.is_bare_weights:
            return self._assess_weights(source, environment)
        manifest = source.manifest
        if manifest is None or manifest.kind in ("words", "encoder"):
            return Assessment(False)
        if manifest.kind == "codes":
            return Assessment(False, "its probabilities are not those that were measured")
        if source.certified:
            return Assessment(False, "its confidences are not those that were certified")
        return _unfit(environment) or Assessment(False, "it does not run fine-tuned task models")

    def _assess_weights(self, source: ModelSource, environment: Environment) -> Assessment:
        reason = "it answers many requests side by side"
        if source.engine:
            program = source.settings.get("program")
            if find_vllm(Path(program) if program else None) is None:
                missing = VllmNotInstalled(program)
                return Assessment(False, "it is not installed", install_hint=missing.hint or "")
            reason = "it is the engine named for this model"
        elif unfit := _unfit(environment):
            return unfit
        return Assessment(
            True,
            reason,
            "a server in a child process",
            weights=source.path,
            weights_bytes=weights_bytes(source.path),
        )

    def load(self, source: ModelSource) -> Model:
        """Return the model, whose server starts with the first request. Raise VllmNotInstalled."""
        config = parse_record(VllmConfig, {**source.settings, "model": source.path}, where="vllm")
        return VllmModel(config, source.prices, name=source.name, schema=source.schema)


def _unfit(environment: Environment) -> Assessment | None:
    if not environment.hardware.gpus:
        return Assessment(False, "there is no CUDA GPU")
    return None if "vLLM" in environment.installed else Assessment(False, "it is not installed")


VLLM = VllmEngine()
