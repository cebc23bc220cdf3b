"""Several fine-tuned models over one base: its weights are in memory once, and each model adds its LoRA adapter.

Requests of one adapter are batched; those of others wait for their turn and share neither keys nor values.
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
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler
from smallfirst.models.label_model import LabelLogProbs, LabelModel, TextEmbedding
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import ADAPTER_CONFIG, Manifest, read_manifest, require_base
from smallfirst.models.protocol import Model
from smallfirst.pricing.machine import MachinePrice

ADAPTER_WEIGHTS = "adapter_model.safetensors"
SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules")
"""The settings of peft that are read; the rest is about training, or names code or places that are not followed."""


class LoraBase:
    """A base model and the adapters over it. Many threads may use it; they take turns."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        """Serve adapters over `model`, whose linear layers are wrapped in place; errors mention `name`."""
        self.model, self.tokenizer, self._name = model, tokenizer, name
        self._wrapped: Any = None
        self._layers: list[Any] = []
        self._active: str | None = None
        self._adapters: dict[Path, str] = {}
        self._n_tried = 0
        self._lock = threading.Lock()
        self._scheduler: ContinuousBatchScheduler | None = None

    @classmethod
    def load(cls, folder: Path, *, name: str = "") -> LoraBase:
        return cls(*load_causal(folder), name=name or folder.name)

    def serve(self, folder: Path, *, name: str = "", price: MachinePrice | None = None) -> Model:
        manifest = read_manifest(folder)
        adapter = self.add(folder)
        name = name or manifest.task.name
        if manifest.kind == "label_tokens":
            return LabelModel(_AdapterScorer(self, adapter, manifest), manifest, name=name, price=price)
        if manifest.kind == "generative":
            return GenerativeModel.for_task(self._shared(), manifest, name=name, price=price, adapter=adapter)
        if manifest.kind == "chat":
            return GenerativeModel.for_chat(self._shared(), name=name, price=price, adapter=adapter, manifest=manifest)
        if manifest.kind == "text":
            return GenerativeModel.for_text(self._shared(), manifest, name=name, price=price, adapter=adapter)
        raise ConfigError(f"{folder}: a model of kind {manifest.kind} has no adapters")

    def add(self, folder: Path) -> str:
        folder = folder.resolve()
        with self._lock:
            if folder not in self._adapters:
                self._n_tried += 1
                adapter = f"adapter{self._n_tried}"
                self._load(folder, adapter)
                self._adapters[folder] = adapter
            return self._adapters[folder]

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        with self._lock:
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

    def _shared(self) -> ContinuousBatchScheduler:
        if self._scheduler is None or self._scheduler.closed:
            generator = Generator(self.model, self.tokenizer, using=self.using)
            self._scheduler = ContinuousBatchScheduler(generator, name=self._name)
            return self._scheduler
        return self._scheduler.share()

    def _load(self, folder: Path, adapter: str) -> None:
        try:
            import peft
            from peft.tuners.lora import LoraLayer
        except ImportError:
            raise MissingExtra("Serving adapters", "train") from None
        settings, weights = _read_settings(folder), _read_weights(folder)
        config = peft.LoraConfig(**settings, inference_mode=True, task_type=peft.TaskType.CAUSAL_LM)
        try:
            wrong = self._wrap(config, weights, adapter)
        except (RuntimeError, ValueError, KeyError) as error:
            wrong = [str(error)]
        if wrong and self._wrapped is not None and adapter in self._wrapped.peft_config:
            self._wrapped.delete_adapter(adapter)
        self._layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        self._active = None
        if wrong:
            raise ConfigError(f"{folder}: this adapter does not fit the base {self._name}: {wrong[0]}")

    def _wrap(self, config: Any, weights: dict[str, Any], adapter: str) -> list[str]:
        import peft

        if self._wrapped is None:
            self._wrapped = peft.get_peft_model(self.model, config, adapter, autocast_adapter_dtype=False)
        else:
            self._wrapped.add_adapter(adapter, config)
        found: Any = peft.set_peft_model_state_dict(self._wrapped, weights, adapter)
        self._wrapped.eval()
        self._wrapped.requires_grad_(False)
        return [*(key for key in found.missing_keys if f".{adapter}." in key), *found.unexpected_keys]


class _AdapterScorer:
    def __init__(self, base: LoraBase, adapter: str, manifest: Manifest) -> None:
        self._base, self._adapter = base, adapter
        self._scorer = LabelScorer(base.model, base.tokenizer, manifest)

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        with self._base.using(self._adapter):
            return self._scorer.score(texts)

    def embed(self, texts: Sequence[str]) -> list[TextEmbedding]:
        with self._base.using(self._adapter):
            return self._scorer.embed(texts)


def load_adapters(folders: Mapping[str, Path], *, price: MachinePrice | None = None) -> dict[str, Model]:
    """Return models by name, one base shared. Raise ConfigError if one does not fit, WeightsNotFound."""
    bases: dict[str, LoraBase] = {}
    found: dict[str, Model] = {}
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        base, weights = manifest.base, find_weights(manifest.base)
        require_base(folder, manifest, weights)
        if base not in bases:
            bases[base] = LoraBase.load(weights, name=base)
        found[name] = bases[base].serve(folder, name=name, price=price)
    return found


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA":
        raise ConfigError(f"{path}: peft_type must be LORA; no other adapters are served")
    settings = {key: config[key] for key in SETTINGS if config.get(key) is not None}
    layers = config.get("layers_to_transform")
    return settings if layers is None else {**settings, "layers_to_transform": layers}


def _read_weights(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    try:
        weights: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not readable as safetensors: {error}") from None
    other = [key for key in weights if ".layers." not in key or ".lora_" not in key]
    if other:
        rule = "only low-rank parts of the blocks' linear layers can be served beside others"
        raise ConfigError(f"{path}: {rule}, not {other[0]}", hint="merge it into the base, and serve that")
    return weights
