"""From a model's folder to the Model that answers, whatever kind it is."""

from __future__ import annotations

from pathlib import Path

from smallfirst.models.compute_thread import run_in_temp_thread
from smallfirst.models.label_model import LabelModel, Scorer
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Model
from smallfirst.pricing import MachinePrice

ADAPTER_CONFIG = "adapter_config.json"
"""The file by which peft's folders of low-rank adapters are known."""


def load_model(folder: Path, *, name: str = "", price: MachinePrice | None = None) -> Model:
    """The model in a folder written by training, a linear fit or the registry, ready to answer.

    A folder of low-rank adapters brings a base of its own; `adapters.load_adapters` shares it among several.

    Raises ConfigError if the folder holds none.
    """
    return run_in_temp_thread(lambda: _loaded(folder, name, price))


def _loaded(folder: Path, name: str, price: MachinePrice | None) -> Model:
    if (folder / ADAPTER_CONFIG).is_file():
        from smallfirst.models.generation.lora_models import load_adapter

        return load_adapter(folder, name=name, price=price)
    manifest = read_manifest(folder)
    if manifest.kind == "writes":
        from smallfirst.models.generation.models import GenerativeTaskModel

        return GenerativeTaskModel.load(folder, manifest, name=name, price=price)
    if manifest.kind == "chats":
        from smallfirst.models.generation.models import ChatModel

        chat = ChatModel.load(folder, name=name or manifest.task.name, price=price)
        chat.max_prompt_tokens = manifest.max_tokens
        return chat
    if manifest.kind == "codes":
        from smallfirst.models.local.label_scorer import LabelScorer

        scorer: Scorer = LabelScorer.load(folder, manifest)
    else:
        from smallfirst.models.linear.classifier import LinearClassifier

        scorer = LinearClassifier.load(folder, manifest)
    return LabelModel(scorer, manifest, name=name, price=price)
