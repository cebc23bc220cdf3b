"""Several fine-tuned models over one base: its weights are in memory once, and each model adds its LoRA adapter.

Requests of one adapter are batched; those of others wait for their turn and share neither keys nor values.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError, ModelError
from smallfirst.models.generation.adapters import attach_adapter, find_base
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler
from smallfirst.models.label_model import LabelModel
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Model
from smallfirst.pricing.machine import MachinePrice


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
            scorer = LabelScorer(self.model, self.tokenizer, manifest, using=partial(self.using, adapter))
            return LabelModel(scorer, manifest, name=name, price=price)
        if manifest.kind in ("generative", "chat", "text"):
            return GenerativeModel.fine_tuned(self._shared(), manifest, name=name, price=price, adapter=adapter)
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
            self._wrapped = attach_adapter(self.model, self._wrapped, folder, adapter, base=self._name)
        finally:
            self._layers = [module for module in self.model.modules() if hasattr(module, "lora_A")]
            self._active = None


_BASES: weakref.WeakValueDictionary[Path, LoraBase] = weakref.WeakValueDictionary()
_LOADING = threading.Lock()


def load_adapters(folders: Mapping[str, Path], *, price: MachinePrice | None = None) -> dict[str, Model]:
    """Return models by name; all that this process has loaded over one base share its weights.

    Raise ConfigError if one does not fit, WeightsNotFound.
    """
    found: dict[str, Model] = {}
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        weights = find_base(folder, manifest)
        with _LOADING:
            base = _BASES.get(weights) or LoraBase.load(weights, name=manifest.base)
            _BASES[weights] = base
        found[name] = base.serve(folder, name=name, price=price)
    return found
