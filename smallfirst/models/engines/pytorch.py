"""The engine of fine-tuned models as they were measured, and of bare weights: PyTorch in this process."""

from __future__ import annotations

import importlib.util

from smallfirst.errors import MissingExtra
from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.label_model import LabelModel
from smallfirst.models.protocol import Model


class PyTorchEngine:
    """Scores labels or generates text in this process; concurrent requests share its batches."""

    def is_installed(self) -> bool:
        return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        if source.kind == "gguf":
            return Assessment(False, "it would unpack the weights to two or four times the memory")
        if source.kind not in ("weights", "label", "generative"):
            return Assessment(False)
        if "PyTorch" not in environment.installed:
            missing = MissingExtra(f"running {source.location} with PyTorch", "train")
            return Assessment(False, "it is not installed", missing=missing)
        method, drawback = "generated in this process, requests batched together", ""
        if source.kind == "weights":
            reason, drawback = "the weights are a folder of safetensors", "it generates for fewer requests at once"
        elif source.kind == "label":
            method = "labels scored in this process, requests batched together"
            n_answers = len(source.manifest.label_tokens)
            reason = f"its {n_answers} answers are closed: one pass over the prompt gives the probability of each"
        else:
            reason = "its answers and confidences are those that were measured"
            drawback = "faster at reading long prompts, slower at generating in bf16"
        threads = environment.hardware.cores
        return Assessment(True, reason, method, drawback, weights=source.path, threads=threads)

    def load(self, source: ModelSource) -> Model:
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


PYTORCH = PyTorchEngine()
