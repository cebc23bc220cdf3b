"""A Model that reads its answer from label probabilities, whatever computes them: code tokens, words, an encoder.

Requests that wait at the same moment share one pass: a worker thread takes what is queued and hands it to the scorer as
a batch. No request waits for others to arrive, so a lone request has the lowest latency and a crowd the best rate. The
price: one Python thread per model.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from smallfirst.errors import ConfigError, ModelError
from smallfirst.models.model import Chunk, Completion, Request, stream_whole
from smallfirst.pricing import MachinePrice
from smallfirst.records import Record, write_atomically
from smallfirst.tasks.classify import Classify

MANIFEST = "smallfirst.json"


class Manifest(Record):
    """What a model folder tells about itself; written last, so a folder without one is not a model."""

    kind: Literal["codes", "words", "encoder"]
    """`codes`: a causal model read at one position · `words`, `encoder`: linear models."""
    task: Classify
    """The task it was made for."""
    base: str
    """Base model by name; empty for `words`."""
    codes: tuple[int, ...] = ()
    """Token id of each label, in label order (`codes` only)."""
    temperature: float = 1.0
    """Divides the label log-probabilities before they are reported; fitted on validation rows."""
    max_tokens: int = 512
    """Longest prompt in tokens; longer texts lose their middle."""
    weights_fingerprint: str = ""
    """Changes with the weights."""


class Scored(NamedTuple):
    """Label probabilities of one text."""

    log_probabilities: Sequence[float]
    """One per label, in label order, in nats."""
    n_tokens: int
    """Tokens read; 0 where nothing is tokenised."""
    busy_s: float
    """Share of the machine's time this text took, in seconds."""


class Scorer(Protocol):
    """Label probabilities of many texts at once. Called from one thread at a time."""

    def score(self, texts: Sequence[str]) -> list[Scored]:
        """One result per text, in order."""


class ScoredModel:
    """A Scorer as a Model: batches what is asked at the same time, prices the machine-seconds."""

    most_at_once = 512

    def __init__(
        self, scorer: Scorer, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        self.manifest = manifest
        self._scorer = scorer
        self._name = name or manifest.task.name
        self._price = price or MachinePrice()
        self._waiting: queue.Queue[tuple[str, Future[Scored]] | None] = queue.Queue()
        self._door, self._closed = threading.Lock(), False
        self._worker = threading.Thread(target=self._work, name=f"scorer {name}", daemon=True)
        self._worker.start()
        # A thread that has run native code must not be torn down by the interpreter's exit.
        atexit.register(self._stop)

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The likeliest label, its probability as confidence, the five best as alternatives."""
        began = time.perf_counter()
        future: Future[Scored] = Future()
        with self._door:  # nothing may be queued behind the worker's last item: it would wait for ever
            if self._closed:
                raise ModelError(f"{self._name} is closed")
            self._waiting.put((request.text, future))
        scored = await asyncio.wrap_future(future)
        probabilities = tempered(scored.log_probabilities, self.manifest.temperature)
        best = np.argsort(-probabilities)[:5]
        labels = self.manifest.task.labels
        return Completion(
            text=labels[best[0]],
            answered_by=self._name,
            latency_ms=(time.perf_counter() - began) * 1000,
            cost_usd=self._price.cost_usd(scored.busy_s),
            prompt_tokens=scored.n_tokens,
            completion_tokens=1,
            confidence=float(probabilities[best[0]]),
            alternatives=tuple((labels[i], float(probabilities[i])) for i in best),
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """A label comes in one piece."""
        return stream_whole(self, request)

    async def aclose(self) -> None:
        """Stop the worker thread once it has answered what waits."""
        atexit.unregister(self._stop)
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        with self._door:
            self._closed = True
            self._waiting.put(None)
        self._worker.join(timeout=10)

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            taken = [first]
            while len(taken) < self.most_at_once and not self._waiting.empty():
                item = self._waiting.get()
                if item is None:
                    self._waiting.put(None)
                    break
                taken.append(item)
            self._answer([item for item in taken if item[1].set_running_or_notify_cancel()])

    def _answer(self, taken: list[tuple[str, Future[Scored]]]) -> None:
        if not taken:
            return
        try:
            scored = self._scorer.score([text for text, _ in taken])
            answered = list(zip(taken, scored, strict=True))
        except Exception as error:
            for _, future in taken:
                future.set_exception(ModelError(f"{self._name} could not answer: {error}"))
            return
        for (_, future), result in answered:
            future.set_result(result)


def tempered(log_probabilities: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities from log-probabilities divided by `temperature`; the last axis sums to 1."""
    scaled = np.asarray(log_probabilities, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a model folder."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises ConfigError if it has none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {MANIFEST}, so it is not a model of smallfirst")
    return Manifest.load(path)


def load_model(folder: Path, *, name: str = "", price: MachinePrice | None = None) -> ScoredModel:
    """The model in a folder written by training, a linear fit or the registry, ready to answer."""
    manifest = read_manifest(folder)
    if manifest.kind == "codes":
        from smallfirst.models.local import LabelScorer

        scorer: Scorer = LabelScorer.load(folder, manifest)
    else:
        from smallfirst.models.linear import LinearScorer

        scorer = LinearScorer.load(folder, manifest)
    return ScoredModel(scorer, manifest, name=name, price=price)
