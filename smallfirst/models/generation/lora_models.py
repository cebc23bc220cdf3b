"""Many fine-tuned models over one base: its weights are in memory once, and each model adds its low-rank adapters.

An adapter folder is what peft saves (`adapter_config.json`, `adapter_model.safetensors`) beside a manifest that names
task and base. Requests of one adapter are written together; those of others wait for their turn, and neither keys nor
values are shared, since the same text means other numbers under another adapter. The price of not merging: two small
products more for each matrix, and one adapter at a time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError, MissingExtra, ModelError
from smallfirst.models.catalog import find_weights
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.models import ChatModel, GenerativeTaskModel
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler
from smallfirst.models.label_model import LabelLogProbs, LabelModel, TextEmbedding
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.protocol import Model
from smallfirst.pricing import MachinePrice

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
READ_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules")
"""What is read of peft's settings; the rest is about training, or names code or places that are not followed."""


class AdaptedBase:
    """A base model and the adapters over it. Many threads may use it; they take turns."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        """The model's linear layers are wrapped in place as soon as there is an adapter. `name` stands in errors."""
        self.model, self.tokenizer, self._name = model, tokenizer, name
        self._wrapped: Any = None
        self._layers: list[Any] = []
        self._active: str | None = None
        self._adapters: dict[Path, str] = {}
        self._n_tried = 0
        self._turn = threading.Lock()
        self._live: ContinuousBatchScheduler | None = None

    @classmethod
    def load(cls, folder: Path, *, name: str = "") -> AdaptedBase:
        """From a folder of base weights."""
        return cls(*load_causal(folder), name=name or folder.name)

    def serve(self, folder: Path, *, name: str = "", price: MachinePrice | None = None) -> Model:
        """The model of an adapter folder, over this base. Raises ConfigError if the folder does not fit."""
        manifest = read_manifest(folder)
        adapter = self.add(folder)
        name = name or manifest.task.name
        if manifest.kind == "codes":
            return LabelModel(_TurnScorer(self, adapter, manifest), manifest, name=name, price=price)
        if manifest.kind == "writes":
            return GenerativeTaskModel(self._writer(), manifest, name=name, price=price, adapter=adapter)
        if manifest.kind == "chats":
            chat = ChatModel(self._writer(), name=name, price=price, adapter=adapter)
            chat.max_prompt_tokens = manifest.max_tokens
            return chat
        raise ConfigError(f"{folder}: a model of kind {manifest.kind} has no adapters")

    def add(self, folder: Path) -> str:
        """The name under which `using` knows the folder's adapter. Raises ConfigError if it does not fit the base."""
        folder = folder.resolve()
        with self._turn:
            if folder not in self._adapters:
                self._n_tried += 1
                adapter = f"adapter{self._n_tried}"
                self._load(folder, adapter)
                self._adapters[folder] = adapter
            return self._adapters[folder]

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Holds while the base computes with this adapter, or with none if it is empty. Nobody else has it then."""
        with self._turn:
            if adapter and adapter not in self._adapters.values():
                raise ModelError(f"{self._name} has no adapter {adapter!r}")
            if adapter != self._active:
                self._switch(adapter)
            yield

    def _switch(self, adapter: str) -> None:
        # peft's own switch also says for every weight whether it is trained: 13 to 50 ms where a step takes 30.
        for layer in self._layers:
            layer._disable_adapters = not adapter
            if adapter:
                layer._active_adapter = [adapter]
        self._active = adapter

    def _writer(self) -> ContinuousBatchScheduler:
        if self._live is None or self._live.closed:
            self._live = ContinuousBatchScheduler(
                Generator(self.model, self.tokenizer, using=self.using), name=self._name
            )
            return self._live
        return self._live.share()

    def _load(self, folder: Path, adapter: str) -> None:
        try:
            import peft
            from peft.tuners.lora import LoraLayer
        except ImportError:
            raise MissingExtra("Serving adapters", "train") from None
        settings, weights = _read_settings(folder), _read_weights(folder)
        config = peft.LoraConfig(**settings, inference_mode=True, task_type=peft.TaskType.CAUSAL_LM)
        try:
            wrong = self._put_on(config, weights, adapter)
        except (RuntimeError, ValueError, KeyError) as error:
            wrong = [str(error)]
        if wrong and self._wrapped is not None and adapter in self._wrapped.peft_config:
            self._wrapped.delete_adapter(adapter)
        self._layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        self._active = None
        if wrong:
            raise ConfigError(f"{folder}: this adapter does not fit the base {self._name}: {wrong[0]}")

    def _put_on(self, config: Any, weights: dict[str, Any], adapter: str) -> list[str]:
        """Names of tensors that are missing or too many. Raises RuntimeError, ValueError or KeyError if none fit."""
        import peft

        if self._wrapped is None:
            self._wrapped = peft.get_peft_model(self.model, config, adapter, autocast_adapter_dtype=False)
        else:
            self._wrapped.add_adapter(adapter, config)
        found: Any = peft.set_peft_model_state_dict(self._wrapped, weights, adapter)
        self._wrapped.eval()
        self._wrapped.requires_grad_(False)
        return [*(key for key in found.missing_keys if f".{adapter}." in key), *found.unexpected_keys]


class _TurnScorer:
    """Label probabilities, and vectors, by one adapter of a base."""

    def __init__(self, base: AdaptedBase, adapter: str, manifest: Manifest) -> None:
        self._base, self._adapter = base, adapter
        self._scorer = LabelScorer(base.model, base.tokenizer, manifest)

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        """One result per text, in order."""
        with self._base.using(self._adapter):
            return self._scorer.score(texts)

    def embed(self, texts: Sequence[str]) -> list[TextEmbedding]:
        """One vector per text, in order."""
        with self._base.using(self._adapter):
            return self._scorer.embed(texts)


def load_adapter(folder: Path, *, name: str = "", price: MachinePrice | None = None) -> Model:
    """The model of one adapter folder, over a base of its own."""
    return load_adapters({name: folder}, price=price)[name]


def load_adapters(folders: Mapping[str, Path], *, price: MachinePrice | None = None) -> dict[str, Model]:
    """The models of adapter folders by the names given; those of one base share it.

    Raises ConfigError if a folder does not fit its base, WeightsNotFound if that is nowhere.
    """
    bases: dict[str, AdaptedBase] = {}
    found: dict[str, Model] = {}
    for name, folder in folders.items():
        base = read_manifest(folder).base
        if base not in bases:
            bases[base] = AdaptedBase.load(find_weights(base), name=base)
        found[name] = bases[base].serve(folder, name=name, price=price)
    return found


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(said, dict) or str(said.get("peft_type", "")).upper() != "LORA":
        raise ConfigError(f"{path}: peft_type must be LORA; no other adapters are served")
    kept = {key: said[key] for key in READ_SETTINGS if said.get(key) is not None}
    layers = said.get("layers_to_transform")
    return kept if layers is None else {**kept, "layers_to_transform": layers}


def _read_weights(folder: Path) -> dict[str, Any]:
    """The adapter's tensors by name. Raises ConfigError if they are more than low-rank parts of the blocks' layers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        weights: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: no safetensors to be read: {error}") from None
    other = [key for key in weights if ".layers." not in key or ".lora_" not in key]
    if other:
        rule = "only low-rank parts of the blocks' linear layers can be served beside others"
        raise ConfigError(f"{path}: {rule}, not {other[0]}", hint="merge it into the base, and serve that")
    return weights
