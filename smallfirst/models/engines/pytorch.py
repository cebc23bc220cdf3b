"""The engine of fine-tuned models as they were measured, and of bare weights: PyTorch in this process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError
from smallfirst.models.engines.engine import Assessment, Environment, ModelSource, weights_bytes
from smallfirst.models.label_model import LabelModel
from smallfirst.models.manifest import ADAPTER_CONFIG, Manifest
from smallfirst.models.protocol import Model

_INSTALL = 'pip install "smallfirst[train]"'


class PyTorchEngine:
    """Scores labels or generates text in this process; concurrent requests share its batches."""

    def is_installed(self) -> bool:
        """Return True if PyTorch and transformers are."""
        return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        """Return that it can if the source is a folder, and why."""
        if source.is_gguf:
            return Assessment(False, "it would unpack the weights to two or four times the memory")
        manifest = source.manifest
        if (manifest is None and not source.is_bare_weights) or (manifest and manifest.kind in ("words", "encoder")):
            return Assessment(False)
        if "PyTorch" not in environment.installed:
            return Assessment(False, f"it is not installed ({_INSTALL})", install_hint=_INSTALL)
        method, drawback = "generated in this process, requests batched together", ""
        if manifest is None:
            reason, drawback = "the weights are a folder of safetensors", "it generates for fewer requests at once"
        elif manifest.kind == "codes":
            method = "labels scored in this process, requests batched together"
            reason = (
                f"its {len(manifest.codes)} answers are closed: one pass over the prompt gives the probability of each"
            )
        else:
            reason = "its answers and confidences are those that were measured"
            drawback = "faster at reading long prompts, slower at generating in bf16"
        return Assessment(
            True,
            reason,
            method,
            drawback,
            weights=source.path,
            weights_bytes=weights_bytes(source.path),
            threads=environment.hardware.cores,
        )

    def load(self, source: ModelSource) -> Model:
        """Return the model of a folder that training wrote, or a chat model from bare weights."""
        manifest, name, price = source.manifest, source.name, source.prices.machine
        if manifest is None:
            return _load_chat(source.path, name=name or source.path.name, price=price, schema=source.schema)
        if (source.path / ADAPTER_CONFIG).is_file():
            from smallfirst.models.generation.lora_models import load_adapters

            return load_adapters({name: source.path}, price=price)[name]
        return _load_merged(source, manifest)


def _load_merged(source: ModelSource, manifest: Manifest) -> Model:
    name, price = source.name or manifest.task.name, source.prices.machine
    if manifest.kind == "codes":
        from smallfirst.models.local.label_scorer import LabelScorer

        return LabelModel(LabelScorer.load(source.path, manifest), manifest, name=name, price=price)
    if manifest.kind == "writes":
        from smallfirst.models.generation.generator import Generator
        from smallfirst.models.generation.model import GenerativeModel

        return GenerativeModel.for_task(Generator.load(source.path), manifest, name=name, price=price)
    if manifest.kind == "chats":
        return _load_chat(source.path, name=name, price=price, max_tokens=manifest.max_tokens)
    raise ConfigError(f'{source.path}: PyTorch cannot load a model of kind "{manifest.kind}"')


def _load_chat(folder: Path, **settings: Any) -> Model:
    from smallfirst.models.generation.generator import Generator
    from smallfirst.models.generation.model import GenerativeModel

    return GenerativeModel.for_chat(Generator.load(folder, chat=True), **settings)


PYTORCH = PyTorchEngine()
