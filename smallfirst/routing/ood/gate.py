"""Is this request the task's at all? In front of one task's Router.

A fine-tuned classifier answers whatever it is asked, often with confidence, so its own confidence cannot tell a request
for a letter from a ticket. A DomainGate is a linear model of the task's rows against open-ended requests: it costs a
few milliseconds with the frozen encoder (under one with words alone) and needs some dozen examples of what else people
ask. A SignatureGate needs none: it asks the task's own Signature, the same that `auto` asks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.models.batching import BatchWorker
from smallfirst.models.label_model import LabelModel
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.linear.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.protocol import Request
from smallfirst.pricing import MachinePrice
from smallfirst.records import Record
from smallfirst.routing.ood.detector import PROFILE_FILE, ProfileScore, TaskProfile
from smallfirst.routing.router import OodScore
from smallfirst.tasks.classify import Classify

_TASK = Classify(name="domain", labels=("task", "other"), about="Is this a request of the task?")


class DomainLimit(Record):
    """The most doubt a request of the task may raise."""

    limit: float
    """In [0, 1]."""


class DomainGate:
    """Doubt that a text belongs to the task, in [0, 1]; asked together, texts are scored together."""

    def __init__(
        self, scorer: LinearClassifier, limit: float, *, base: str = "", price: MachinePrice | None = None
    ) -> None:
        self._scorer, self._limit = scorer, limit
        self._manifest = Manifest(kind="encoder" if base else "words", task=_TASK, base=base)
        self._model = LabelModel(scorer, self._manifest, name="domain", price=price)

    @classmethod
    def fit(
        cls,
        own: Dataset,
        other: Dataset,
        selection: Dataset,
        *,
        keep: float = 0.97,
        encoder: tuple[str, SentenceEncoder] | None = None,
    ) -> DomainGate:
        """From the task's rows and some that are not; the limit keeps a share `keep` of the selection rows.

        With an encoder (its name, and the encoder) the texts are compared by meaning, else by their words.
        """
        rows = [e.model_copy(update={"answer": "task"}) for e in own.examples]
        rows += [e.model_copy(update={"answer": "other"}) for e in other.examples]
        data = own.subset("domain", tuple(rows))
        scorer = LinearClassifier.fit(
            "encoder" if encoder else "words", data, _TASK, encoder=encoder[1] if encoder else None
        )
        scored = scorer.score([example.text for example in selection.examples]) if len(selection) else []
        doubts = [float(np.exp(row.log_probabilities[1])) for row in scored]
        limit = float(np.quantile(doubts, keep)) if doubts else 0.5
        return cls(scorer, limit, base=encoder[0] if encoder else "")

    @property
    def limit(self) -> float:
        """The most doubt a request of the task may raise."""
        return self._limit

    async def doubt(self, request: Request) -> OodScore:
        """Probability that the last user message is not the task's, and what it took to find out."""
        found = await self._model.complete(request)
        return OodScore(dict(found.alternatives)["other"], found.cost_usd, found.latency_ms)

    async def aclose(self) -> None:
        """Stop the scoring thread."""
        await self._model.aclose()

    def save(self, folder: Path) -> None:
        """Write weights, words and limit."""
        DomainLimit(limit=self._limit).save(folder / "limit.json")
        self._scorer.save(folder, self._manifest)

    @classmethod
    def load(cls, folder: Path, *, price: MachinePrice | None = None) -> DomainGate | None:
        """Read back what `save` wrote; None if there is nothing."""
        if not (folder / "limit.json").exists():
            return None
        limit = DomainLimit.load(folder / "limit.json").limit
        manifest = read_manifest(folder)
        return cls(LinearClassifier.load(folder, manifest), limit, base=manifest.base, price=price)


class SignatureGate:
    """Doubt that a text belongs to the task by its Signature alone; asked together, texts are looked at together."""

    def __init__(self, signature: TaskProfile, *, price: MachinePrice | None = None) -> None:
        self._signature, self._price = signature, price or MachinePrice()
        self._worker: BatchWorker[str, tuple[ProfileScore, float]] = BatchWorker(
            self._look, name="domain", most_at_once=64
        )

    @property
    def limit(self) -> float:
        """The most doubt a request of the task may raise."""
        return self._signature.limit

    async def doubt(self, request: Request) -> OodScore:
        """How unusual the last user message is among the task's own, and what it took to find out."""
        began = time.perf_counter()
        look, busy_s = await self._worker.ask(request.text)
        return OodScore(look.doubt, self._price.cost_usd(busy_s), (time.perf_counter() - began) * 1000)

    async def aclose(self) -> None:
        """Stop the thread that looks."""
        await self._worker.aclose()

    @classmethod
    def load(cls, folder: Path, *, price: MachinePrice | None = None) -> SignatureGate | None:
        """Of the signature in the folder; None if there is nothing."""
        return cls(TaskProfile.load(folder), price=price) if (folder / PROFILE_FILE).exists() else None

    def _look(self, texts: Sequence[str]) -> list[tuple[ProfileScore, float]]:
        began = time.perf_counter()
        looks = self._signature.look(texts)
        return [(look, (time.perf_counter() - began) / len(texts)) for look in looks]
