"""A Model that answers with a JSON list of labels, each of which has log-odds of its own."""

from __future__ import annotations

import time

import numpy as np

from smallfirst.data.row_formats import to_json
from smallfirst.models.label_model import LabelModel
from smallfirst.models.protocol import Capability, Completion, Request
from smallfirst.models.usage import paid
from smallfirst.tasks.task import Task


class LabelSetModel(LabelModel):
    """A Scorer of log-odds as a Model: the labels above the manifest's threshold, in label order."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        return super().capabilities - {Capability.LOGPROBS, Capability.LABEL_PROBABILITIES}

    async def complete(self, request: Request) -> Completion:
        began = time.perf_counter()
        scored = await self._score(request.text)
        odds, threshold = np.asarray(scored.log_probabilities, dtype=np.float64), self.manifest.label_threshold
        return Completion(
            text=answer_labels(odds, self.manifest.task, threshold),
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            **paid(self._charge(scored)),
            confidence=self.manifest.calibration.confidence(decision_nats(odds, threshold).tolist()),
        )


def answer_labels(odds: np.ndarray, task: Task, threshold: float) -> str:
    """Return the canonical answer: the labels whose probability is at least `threshold`; `odds` (labels,) in nats."""
    chosen = odds >= _log_odds(threshold)
    labels = [label for label, is_chosen in zip(task.answer_labels, chosen, strict=True) if is_chosen]
    return str(task.parse(to_json(labels)))


def decision_nats(odds: np.ndarray, threshold: float) -> np.ndarray:
    """Return the log-probability of each label's decision (labels,), in nats, from its log-odds."""
    nats: np.ndarray = -np.logaddexp(0, np.where(odds >= _log_odds(threshold), -odds, odds))
    return nats


def _log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
