"""Decide whether a request belongs to a task at all, in front of one task's Router.

Scored by the task's profile, which needs its own rows alone, or by a linear model against known foreign requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.models.batching import BatchWorker
from smallfirst.models.label_model import softmax
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.linear.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.protocol import Request
from smallfirst.pricing import MachinePrice
from smallfirst.records import Record
from smallfirst.routing.ood.detector import PROFILE_FILE, TaskProfile
from smallfirst.routing.types import OodScore
from smallfirst.tasks.classify import Classify

MAX_BATCH = 64
LIMIT_FILE = "limit.json"
_TASK = Classify(name="domain", labels=("task", "other"), about="Is this a request of the task?")


class OodGate:
    """An OodDetector that scores requests which wait at the same time together."""

    def __init__(self, scorer: TaskProfile | ForeignTextClassifier, *, price: MachinePrice | None = None) -> None:
        self._scorer, self._price = scorer, price or MachinePrice()
        self._worker: BatchWorker[str, tuple[float, float]] = BatchWorker(
            self._score, name="domain", max_batch_size=MAX_BATCH
        )

    @classmethod
    def load(cls, folder: Path, *, price: MachinePrice | None = None) -> OodGate | None:
        if (folder / PROFILE_FILE).exists():
            return cls(TaskProfile.load(folder), price=price)
        if (folder / LIMIT_FILE).exists():
            return cls(ForeignTextClassifier.load(folder), price=price)
        return None

    @property
    def threshold(self) -> float:
        return self._scorer.threshold

    async def score(self, request: Request) -> OodScore:
        began = time.perf_counter()
        value, busy_s = await self._worker.submit(request.text)
        return OodScore(value, self._price.cost_usd(busy_s), (time.perf_counter() - began) * 1000)

    async def aclose(self) -> None:
        await self._worker.aclose()

    def _score(self, texts: Sequence[str]) -> list[tuple[float, float]]:
        began = time.perf_counter()
        values = self._scorer.ood_scores(texts)
        return [(value, (time.perf_counter() - began) / len(texts)) for value in values]


class ForeignTextClassifier:
    """A linear model of the task's own texts against foreign ones, on words or on a frozen encoder."""

    def __init__(self, classifier: LinearClassifier, threshold: float, *, base: str = "") -> None:
        self._classifier, self.threshold = classifier, threshold
        self._manifest = Manifest(kind="encoder" if base else "words", task=_TASK, base=base)

    @classmethod
    def fit(
        cls,
        own: Dataset,
        foreign: Dataset,
        selection: Dataset,
        *,
        keep: float = 0.97,
        encoder: tuple[str, SentenceEncoder] | None = None,
    ) -> ForeignTextClassifier:
        """Fit by words, or meaning with an `encoder` (name, encoder), keeping a share `keep` of selection rows."""
        rows = [e.model_copy(update={"answer": "task"}) for e in own.examples]
        rows += [e.model_copy(update={"answer": "other"}) for e in foreign.examples]
        data = own.subset("domain", tuple(rows))
        classifier = LinearClassifier.fit(
            "encoder" if encoder else "words", data, _TASK, encoder=encoder[1] if encoder else None
        )
        scored = classifier.score([example.text for example in selection.examples])
        scores = [float(np.exp(row.log_probabilities[1])) for row in scored]
        threshold = float(np.quantile(scores, keep)) if scores else 0.5
        return cls(classifier, threshold, base=encoder[0] if encoder else "")

    def ood_scores(self, texts: Sequence[str]) -> list[float]:
        return [float(softmax(row.log_probabilities, 1.0)[1]) for row in self._classifier.score(texts)]

    def save(self, folder: Path) -> None:
        _Limit(limit=self.threshold).save(folder / LIMIT_FILE)
        self._classifier.save(folder, self._manifest)

    @classmethod
    def load(cls, folder: Path) -> ForeignTextClassifier:
        manifest = read_manifest(folder)
        threshold = _Limit.load(folder / LIMIT_FILE).limit
        return cls(LinearClassifier.load(folder, manifest), threshold, base=manifest.base)


class _Limit(Record):
    limit: float
    """The threshold, in [0, 1]."""
