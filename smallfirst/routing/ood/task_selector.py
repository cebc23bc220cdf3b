"""Select which of several tasks a request belongs to, or none: the lowest out-of-domain score within its threshold.

Between about equal scores the likelihood of the words decides. Hidden states are read only where words leave it open;
they cannot make a text more ordinary than a clear case, so skipping them changes no selection.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from smallfirst.models.protocol import Request
from smallfirst.pricing.charge import Charge
from smallfirst.pricing.machine import MachinePrice
from smallfirst.records import Record
from smallfirst.routing.ood.detector import ProfileScore, TaskProfile
from smallfirst.routing.policies.policy import is_conversation

if TYPE_CHECKING:
    from smallfirst.models.linear.classifier import LinearClassifier
    from smallfirst.models.local.label_scorer import LabelScorer

TIE = 0.05
"""Difference of two scores up to which the words' likelihoods decide."""


class TaskSelection(Record):
    """Where a request goes, and why."""

    task: str | None
    """The task; None for a request that belongs to none."""
    scores: dict[str, float]
    """Out-of-domain score by task, in [0, 1]; by words alone where that was enough."""
    threshold: float | None
    """Threshold of the task, or of the nearest one; None where no task was asked."""
    why: str
    """One sentence."""
    by_states: bool
    """True if hidden states were read as well as words."""
    cost_usd: float
    """Cost of the selection in USD."""
    charges: tuple[Charge, ...] = ()
    """The lines of `cost_usd`."""
    latency_ms: float
    """Duration of the selection; for a batch of texts each one's share."""


class TaskSelector:
    """Profiles of several tasks side by side. Not thread-safe."""

    def __init__(self, profiles: Mapping[str, TaskProfile], *, price: MachinePrice | None = None) -> None:
        """Take profiles by task name; earlier tasks win what nothing else decides."""
        self.profiles = dict(profiles)
        self._price = price or MachinePrice()

    @classmethod
    def load(
        cls,
        folders: Mapping[str, Path],
        *,
        models: Mapping[str, LinearClassifier | LabelScorer] | None = None,
        price: MachinePrice | None = None,
    ) -> Self:
        """Load profiles by task name, with the `models` some were fitted with. Raise ConfigError if one is missing."""
        given = models or {}
        return cls({name: TaskProfile.load(at, model=given.get(name)) for name, at in folders.items()}, price=price)

    def select(self, request: Request | str) -> TaskSelection:
        """Return the task of a request, by its last user message; a conversation only goes to tasks that have some."""
        conversation = isinstance(request, Request) and is_conversation(request)
        text = request if isinstance(request, str) else request.text
        return self._select([text], conversation=conversation)[0]

    def select_all(self, texts: Sequence[str]) -> list[TaskSelection]:
        """Return the task of each text, in order: equal to `select` one by one, and faster."""
        return self._select(texts, conversation=False) if texts else []

    def _select(self, texts: Sequence[str], *, conversation: bool) -> list[TaskSelection]:
        began = time.perf_counter()
        asked = {n: p for n, p in self.profiles.items() if p.parameters.conversations or not conversation}
        scored = _score(asked, texts)
        found = [self._decide(text, {name: by[i] for name, by in scored.items()}) for i, text in enumerate(texts)]
        busy_s = (time.perf_counter() - began) / len(texts)
        charge = self._price.charge("auto", busy_s)
        cost = {"cost_usd": charge.usd, "charges": (charge,), "latency_ms": busy_s * 1000}
        return [
            TaskSelection(
                task=task,
                scores=(scores := {name: by[i].value for name, by in scored.items()}),
                threshold=self._threshold_of(task or min(scores, key=lambda name: scores[name], default=None)),
                why=why,
                by_states=any(by[i].by_states for by in scored.values()),
                **cost,
            )
            for i, (task, why) in enumerate(found)
        ]

    def _threshold_of(self, task: str | None) -> float | None:
        return None if task is None else self.profiles[task].threshold

    def _decide(self, text: str, scores: Mapping[str, ProfileScore]) -> tuple[str | None, str]:
        if not scores:
            return None, "a conversation, while every task expects a single message" if self.profiles else "no tasks"
        order = sorted(scores, key=lambda name: scores[name].value)
        nearest = order[0]
        candidates = [name for name in order if scores[name].value <= self.profiles[name].threshold]
        if not candidates:
            return None, f"belongs to no task; nearest is {self._describe(nearest, scores[nearest])}"
        first = candidates[0]
        close = [name for name in candidates if scores[name].value - scores[first].value <= TIE]
        if len(close) == 1:
            return first, f"like requests of {self._describe(first, scores[first])}"
        likeliest = max(close, key=lambda name: self.profiles[name].text_features.log_likelihood(text))
        others = ", ".join(name for name in close if name != likeliest)
        return likeliest, f"its words are likelier in {self._describe(likeliest, scores[likeliest])} than in {others}"

    def _describe(self, name: str, score: ProfileScore) -> str:
        by = "words and meaning" if score.by_states else "words"
        return f"{name} (out-of-domain score {score.value:.3f} by {by}, threshold {self.profiles[name].threshold:.3f})"


def _score(profiles: Mapping[str, TaskProfile], texts: Sequence[str]) -> dict[str, list[ProfileScore]]:
    """Score every text with every profile; read hidden states where no task's words find the text clearly its own."""
    by_words = {name: profile.score_words(texts) for name, profile in profiles.items()}
    unclear = np.ones(len(texts), dtype=bool)
    for name, words in by_words.items():
        unclear &= words.ood_score > min(profiles[name].parameters.grey[0], profiles[name].threshold)
    return {name: profile.refine(texts, by_words[name], unclear) for name, profile in profiles.items()}
