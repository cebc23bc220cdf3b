"""Select which of several tasks a request belongs to, or none: the lowest out-of-domain score within its threshold.

Between about equal scores the likelihood of the words decides. Hidden states are read only where words leave it open;
they cannot make a text more ordinary than a clear case, so skipping them changes no selection.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from smallfirst.models.protocol import Request
from smallfirst.pricing.charge import Charge
from smallfirst.pricing.machine import MachinePrice
from smallfirst.records import Record
from smallfirst.routing.ood.detector import ProfileScore, TaskProfile
from smallfirst.routing.policies.policy import is_conversation

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


class TaskSelector:
    """Profiles of several tasks side by side. Not thread-safe."""

    def __init__(self, profiles: Mapping[str, TaskProfile], *, price: MachinePrice | None = None) -> None:
        """Take profiles by task name; earlier tasks win what nothing else decides."""
        self.profiles = dict(profiles)
        self._price = price or MachinePrice()

    @classmethod
    def load(cls, folders: Mapping[str, Path], *, price: MachinePrice | None = None) -> Self:
        """Load profiles by task name. Raise ConfigError if one is missing."""
        return cls({name: TaskProfile.load(at) for name, at in folders.items()}, price=price)

    def select(self, request: Request | str) -> TaskSelection:
        """Return the task of a request, by its last user message; a conversation only goes to tasks that have some."""
        began = time.perf_counter()
        conversation = isinstance(request, Request) and is_conversation(request)
        text = request if isinstance(request, str) else request.text
        asked = {n: p for n, p in self.profiles.items() if p.parameters.conversations or not conversation}
        found = _score(asked, text)
        task, why = self._decide(text, found)
        busy_s, scores = time.perf_counter() - began, {name: one.value for name, one in found.items()}
        charge = self._price.charge("auto", busy_s)
        return TaskSelection(
            task=task,
            scores=scores,
            threshold=self._threshold_of(task or min(scores, key=lambda name: scores[name], default=None)),
            why=why,
            by_states=any(one.by_states for one in found.values()),
            cost_usd=charge.usd,
            charges=(charge,),
            latency_ms=busy_s * 1000,
        )

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


def _score(profiles: Mapping[str, TaskProfile], text: str) -> dict[str, ProfileScore]:
    """Score a text with every profile; read hidden states where no task's words find it clearly its own."""
    by_words = {name: profile.score_words([text]) for name, profile in profiles.items()}
    unclear = all(
        words.ood_score[0] > min(profiles[name].parameters.grey[0], profiles[name].threshold)
        for name, words in by_words.items()
    )
    return {name: profile.refine([text], by_words[name], read=unclear)[0] for name, profile in profiles.items()}
