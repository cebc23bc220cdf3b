"""A sentence encoder: one unit vector a text, by mean pooling over its tokens."""

from __future__ import annotations

import functools
import json
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.base.errors import ConfigError
from smallfirst.base.sync import run_in_thread
from smallfirst.models.batching import length_batches, run_in_compute_thread
from smallfirst.models.encoder.ctranslate2_engine import FAMILIES, CTranslate2Encoder, unsupported_reason
from smallfirst.models.encoder.universal_encoder import UniversalEncoder, is_universal
from smallfirst.models.local.tokenizer import import_transformers, load_pretrained, refuse_remote_code
from smallfirst.models.local.weights import weights_fingerprint

_log = logging.getLogger("smallfirst.serving")

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LARGER_ENCODER = "sentence-transformers/all-mpnet-base-v2"
"""Five times the weights of the default, and about as many times as slow."""
MULTILINGUAL_ENCODER = "universal-sentence-encoder-multilingual-3"
"""Reads 16 languages alike (`CatalogEntry.languages`)."""


MAX_TOKENS = 256
"""Of a text, read by an encoder that does not say otherwise."""
REMEMBERED = 64
"""Texts whose vectors are kept, as many as requests are under way at a server: the domain check and the model that
answers read the same ones."""


@functools.lru_cache(maxsize=4)
def open_encoder(folder: Path, *, int8: bool = False) -> SentenceEncoder:
    """Return the encoder of a folder, one for all that read it; it is never trained, so it remembers vectors."""
    return SentenceEncoder.for_inference(folder, int8=int8, remembered=REMEMBERED)


def forget_texts() -> None:
    """Forget the vectors that encoders of this process remember, so that what is measured next reads its texts."""
    for encoder in list(_REMEMBERING):
        with encoder._lock:
            encoder._latest = {text: found for text, found in encoder._latest.items() if not found.done()}


def longest_text(folder: Path) -> int:
    """Return how many tokens of a text the encoder of a folder reads: what its `sentence_bert_config.json` says."""
    published = folder / "sentence_bert_config.json"
    said = json.loads(published.read_text(encoding="utf-8")) if published.is_file() else {}
    return int(said.get("max_seq_length") or MAX_TOKENS)


class SentenceEncoder:
    """A sentence encoder on this machine."""

    max_tokens: int
    """Longer texts are cut."""
    batch_rows = 32

    def __init__(
        self, folder: Path, *, engine: CTranslate2Encoder | UniversalEncoder | None = None, remembered: int = 0
    ) -> None:
        """Load the weights into PyTorch, or read texts with `engine`; then they are loaded where `model` is asked for.

        Vectors of the latest `remembered` texts are kept; 0 where the weights change.
        """
        if engine is None and is_universal(folder):
            hint = "name it in small.multilingual_encoder, and another one in small.encoder"
            raise ConfigError(f"{folder} holds an encoder that is read as it is: it is not fine-tuned", hint=hint)
        transformers = import_transformers("The sentence encoder", weights=engine is None)
        self.folder, self.engine = folder, engine
        self.tokenizer = load_pretrained(transformers.AutoTokenizer, folder)
        self.max_tokens = longest_text(folder)
        if engine is None:
            _ = self.model
        self._n_remembered, self._lock, self.has_cut = remembered, threading.Lock(), False
        self._n_frozen, self._lowest = 0, dict[tuple[int, ...], Any]()
        """Layers that are not trained, and by text what they make of it (tokens, width)."""
        self._latest: dict[str, Future[np.ndarray]] = {}
        """Unit vectors (width,), float32, by text, some of which are being read."""
        if remembered:
            _REMEMBERING.add(self)

    @classmethod
    def for_inference(cls, folder: Path, *, int8: bool = False, remembered: int = 0) -> SentenceEncoder:
        """Return an encoder that is not trained, on CTranslate2 where that can run it, else on PyTorch in float32."""
        refuse_remote_code(folder)
        if is_universal(folder):
            return cls(folder, engine=UniversalEncoder(folder), remembered=remembered)
        engine = None if unsupported_reason(folder) else CTranslate2Encoder(folder, int8=int8)
        return cls(folder, engine=engine, remembered=remembered)

    @cached_property
    def model(self) -> Any:
        transformers = import_transformers("The sentence encoder")
        import torch

        def load() -> Any:
            return load_pretrained(transformers.AutoModel, self.folder, dtype=torch.float32, use_safetensors=True)

        return run_in_thread(load).eval()

    @cached_property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)

    @cached_property
    def width(self) -> int:
        width: int = self.model.config.hidden_size if self.engine is None else self.engine.width
        return width

    @cached_property
    def max_positions(self) -> int:
        """Tokens for which the encoder has positions, special ones included."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings", self.max_tokens))

    @property
    def int8(self) -> bool:
        return self.engine is not None and self.engine.int8

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (texts, width) in float32, in order."""
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        with self._lock:
            new: dict[str, Future[np.ndarray]] = {text: Future() for text in texts if text not in self._latest}
            found = self._latest | new
            self._latest = dict(list(found.items())[-self._n_remembered :]) if self._n_remembered else {}
        if new:
            self._read(new)
        return np.stack([found[text].result() for text in texts])

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, truncation=True, max_length=self.max_tokens)
        if len(ids) == self.max_tokens and not self.has_cut:
            self.has_cut = True
            _log.warning("%s reads %d tokens; of a longer text it reads the beginning", self.folder, len(ids))
        return ids

    def vectors(self, encoded: Sequence[Sequence[int]]) -> Any:
        """Return unit vectors (texts, width), float32: the mean over each text's tokens, scaled to length 1."""
        import torch

        hidden, mask = self.hidden_states(encoded)
        weight = mask.unsqueeze(-1).float()  # (batch, time, 1)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    def freeze(self, n_layers: int) -> None:
        """Train the other layers alone: what embeddings and the lowest `n_layers` make of a text is computed once.

        It is kept in memory, 1.5 kB a token for MiniLM. At least one layer is trained. Only BERT and MPNet are frozen.
        """
        if self.model.config.model_type in FAMILIES:
            self._n_frozen = min(n_layers, len(self.model.encoder.layer) - 1)
            self.model.requires_grad_(False)
            self.model.encoder.layer[self._n_frozen :].requires_grad_(True)

    def _below(self, encoded: Sequence[Sequence[int]]) -> list[Any]:
        """Return what the frozen layers make of each text (tokens, width), without dropout."""
        import torch

        from smallfirst.models.encoder.packed_states import packed_states
        from smallfirst.models.local.packed_rows import pack_rows

        new = [ids for ids in {tuple(row) for row in encoded} if ids not in self._lowest]
        if new:
            packed, was_training = pack_rows(new), self.model.training
            self.model.eval()
            with torch.no_grad():
                states = packed_states(self.model, packed, layers=slice(self._n_frozen))
            self.model.train(was_training)
            parts = torch.split(states, packed.lengths)
            self._lowest |= {new[i]: own for i, own in zip(packed.order, parts, strict=True)}
        return [self._lowest[tuple(row)] for row in encoded]

    def hidden_states(self, encoded: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Return the last hidden states (texts, tokens, width), float32, and the mask (texts, tokens), 1 for a token.

        Texts are padded on the right to the longest one. With an engine there are no gradients.
        """
        import torch

        from smallfirst.models.encoder.packed_states import packed_states
        from smallfirst.models.local.packed_rows import pack_rows, pad_right

        mask = pad_right([[1] * len(row) for row in encoded])
        if isinstance(self.engine, CTranslate2Encoder):
            return torch.from_numpy(self.engine.hidden_states(encoded)), mask
        if torch.is_grad_enabled() and self.model.config.model_type in FAMILIES:
            packed, below = pack_rows(encoded), None
            if self._n_frozen:
                known = self._below(encoded)
                below = torch.cat([known[i] for i in packed.order])
            states = packed_states(self.model, packed, below, layers=slice(self._n_frozen, None))
            return packed.pad(states).float(), mask
        return self.model(input_ids=pad_right(encoded), attention_mask=mask).last_hidden_state.float(), mask

    def _read(self, new: Mapping[str, Future[np.ndarray]]) -> None:
        """Read texts; who asks for one of them meanwhile waits for its vector. If it fails none is remembered."""
        try:
            texts, encoded = list(new), [self.tokens(text) for text in new]
            for chosen in length_batches([len(ids) for ids in encoded], max_rows=self.batch_rows):
                vectors = self._pooled([encoded[i] for i in chosen])
                for i, vector in zip(chosen, vectors, strict=True):
                    new[texts[i]].set_result(vector)
        except BaseException as error:
            with self._lock:
                self._latest = {text: one for text, one in self._latest.items() if text not in new}
            for one in new.values():
                if not one.done():
                    one.set_exception(error)
            raise

    def _pooled(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        if self.engine is None:
            import torch

            def read() -> np.ndarray:
                with torch.inference_mode():
                    found: np.ndarray = self.vectors(encoded).numpy()
                return found

            return run_in_compute_thread(read)
        if isinstance(self.engine, UniversalEncoder):
            return self.engine.vectors(encoded)
        states = self.engine.hidden_states(encoded)
        mean = np.stack([own[: len(ids)].mean(axis=0) for own, ids in zip(states, encoded, strict=True)])
        unit: np.ndarray = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit


class CachedEncoder:
    """An encoder that embeds every text once: folds and parts of the rows share their vectors."""

    def __init__(self, encoder: Any) -> None:
        self._encoder, self.int8 = encoder, getattr(encoder, "int8", False)
        self._vectors: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors |= dict(zip(new, self._encoder.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


_REMEMBERING: weakref.WeakSet[SentenceEncoder] = weakref.WeakSet()
