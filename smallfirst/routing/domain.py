"""Is this request the task's at all? A linear model on words, fitted on the task's rows against open-ended requests.

A fine-tuned classifier answers whatever it is asked, often with confidence, so its own confidence cannot tell an essay
request from a ticket. This costs under a millisecond and needs some dozen examples of what else people ask.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.models.linear import LinearScorer
from smallfirst.models.scored import Manifest, read_manifest
from smallfirst.records import Record
from smallfirst.tasks.classify import Classify

_TASK = Classify(name="domain", labels=("task", "other"), about="Is this a request of the task?")


class DomainLimit(Record):
    """The most doubt a request of the task may raise."""

    limit: float
    """In [0, 1]."""


class DomainGate:
    """Doubt that a text belongs to the task, in [0, 1]."""

    def __init__(self, scorer: LinearScorer, limit: float) -> None:
        self.scorer, self._limit = scorer, limit

    @classmethod
    def fit(cls, own: Dataset, other: Dataset, selection: Dataset, *, keep: float = 0.98) -> DomainGate:
        """From the task's rows and some that are not; the limit keeps a share `keep` of the selection rows."""
        rows = [e.model_copy(update={"answer": "task"}) for e in own.examples]
        rows += [e.model_copy(update={"answer": "other"}) for e in other.examples]
        scorer = LinearScorer.fit("words", own.subset("domain", tuple(rows)), _TASK)
        gate = cls(scorer, 1.0)
        doubts = [gate.doubt(example.text) for example in selection.examples]
        limit = float(np.quantile(doubts, keep)) if doubts else 0.5
        return cls(scorer, max(0.2, limit))

    @property
    def limit(self) -> float:
        """The most doubt a request of the task may raise."""
        return self._limit

    def doubt(self, text: str) -> float:
        """Probability that the text is not the task's, in [0, 1]."""
        return float(np.exp(self.scorer.score([text])[0].log_probabilities[1]))

    def save(self, folder: Path) -> None:
        """Write weights, words and limit."""
        DomainLimit(limit=self._limit).save(folder / "limit.json")
        self.scorer.save(folder, Manifest(kind="words", task=_TASK, base=""))

    @classmethod
    def load(cls, folder: Path) -> DomainGate | None:
        """Read back what `save` wrote; None if there is nothing."""
        if not (folder / "limit.json").exists():
            return None
        limit = DomainLimit.load(folder / "limit.json").limit
        return cls(LinearScorer.load(folder, read_manifest(folder)), limit)
