"""The front: which of several tasks a request belongs to, or none.

Each task's Signature looks at the text by itself, so a new task changes nothing for the others. A request goes to the
task that finds it most ordinary, if that task finds it ordinary enough. Where two would take it and are as sure, the
words' likelihoods decide between them. The words of a text cost about a millisecond a task, in the same process and
without PyTorch. An encoder or a small model is asked only where the words leave it open: no task finds the text clearly
its own, and some do not find it clearly foreign. A second look cannot make a text more ordinary than a clear case, so
leaving it out changes no choice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from smallfirst.models.protocol import Request
from smallfirst.pricing import MachinePrice
from smallfirst.records import Record
from smallfirst.routing.ood.detector import ProfileScore, TaskProfile

if TYPE_CHECKING:
    from smallfirst.models.linear.classifier import LinearClassifier
    from smallfirst.models.local.label_scorer import LabelScorer

TIE = 0.05
"""Doubts this close say nothing about which of two tasks a text belongs to."""


class TaskSelection(Record):
    """Where a request goes, and why."""

    task: str | None
    """The task; None for a request that is no task's."""
    doubts: dict[str, float]
    """Doubt of every task that was asked, in [0, 1]; by its words alone where that was enough."""
    limit: float | None
    """The most doubt that the task, or the nearest one, takes; None where no task was asked."""
    why: str
    """One sentence a person understands."""
    second_look: bool
    """True if words did not decide it alone."""
    cost_usd: float
    """What it cost to find out."""
    latency_ms: float
    """How long it took; of texts looked at together each one's share."""


class TaskSelector:
    """Several tasks' signatures side by side. Not thread-safe."""

    def __init__(self, signatures: Mapping[str, TaskProfile], *, price: MachinePrice | None = None) -> None:
        """By task name; tasks of earlier places win what nothing else decides."""
        self.signatures = dict(signatures)
        self._price = price or MachinePrice()

    @classmethod
    def load(
        cls,
        folders: Mapping[str, Path],
        *,
        models: Mapping[str, LinearClassifier | LabelScorer] | None = None,
        price: MachinePrice | None = None,
    ) -> Self:
        """Of saved signatures by task name; `models` are the small models of those that were fitted with one.

        Raises ConfigError for a folder without a signature.
        """
        given = models or {}
        return cls({name: TaskProfile.load(at, model=given.get(name)) for name, at in folders.items()}, price=price)

    def choose(self, request: Request | str) -> TaskSelection:
        """The task of a request, by its last user message; a conversation only goes to tasks that have some."""
        conversation = isinstance(request, Request) and sum(m.role != "system" for m in request.messages) > 1
        text = request if isinstance(request, str) else request.text
        return self._choose([text], conversation=conversation)[0]

    def select_all(self, texts: Sequence[str]) -> list[TaskSelection]:
        """The task of each text, in order: the same as one by one, in less time."""
        return self._choose(texts, conversation=False) if texts else []

    def _choose(self, texts: Sequence[str], *, conversation: bool) -> list[TaskSelection]:
        began = time.perf_counter()
        asked = {n: s for n, s in self.signatures.items() if s.fitted.conversations or not conversation}
        looks = _look(asked, texts)
        found = [self._decide(text, {name: look[i] for name, look in looks.items()}) for i, text in enumerate(texts)]
        busy_s = (time.perf_counter() - began) / len(texts)
        cost = {"cost_usd": self._price.cost_usd(busy_s), "latency_ms": busy_s * 1000}
        return [
            TaskSelection(
                task=task,
                doubts=(doubts := {name: look[i].doubt for name, look in looks.items()}),
                limit=self._limit_of(task or min(doubts, key=lambda name: doubts[name], default=None)),
                why=why,
                second_look=any(look[i].second for look in looks.values()),
                **cost,
            )
            for i, (task, why) in enumerate(found)
        ]

    def _limit_of(self, task: str | None) -> float | None:
        return None if task is None else self.signatures[task].limit

    def _decide(self, text: str, looks: Mapping[str, ProfileScore]) -> tuple[str | None, str]:
        """The task and the reason."""
        if not looks:
            return None, "a conversation, while every task is asked in one message" if self.signatures else "no tasks"
        order = sorted(looks, key=lambda name: looks[name].doubt)
        nearest = order[0]
        taking = [name for name in order if looks[name].doubt <= self.signatures[name].limit]
        if not taking:
            return None, f"no task's request; nearest is {self._said(nearest, looks[nearest])}"
        first = taking[0]
        close = [name for name in taking if looks[name].doubt - looks[first].doubt <= TIE]
        if len(close) == 1:
            return first, f"like requests of {self._said(first, looks[first])}"
        likeliest = max(close, key=lambda name: self.signatures[name].wording.log_likelihood(text))
        others = ", ".join(name for name in close if name != likeliest)
        return likeliest, f"its words are likelier in {self._said(likeliest, looks[likeliest])} than in {others}"

    def _said(self, name: str, look: ProfileScore) -> str:
        by = "words and meaning" if look.second else "words"
        return f"{name} (doubt {look.doubt:.3f} by {by}, limit {self.signatures[name].limit:.3f})"


def _look(asked: Mapping[str, TaskProfile], texts: Sequence[str]) -> dict[str, list[ProfileScore]]:
    """Every task's look at every text; the second one where no task's words find the text clearly its own."""
    firsts = {name: signature.first(texts) for name, signature in asked.items()}
    unclear = np.ones(len(texts), dtype=bool)
    for name, first in firsts.items():
        unclear &= first.doubt > min(asked[name].fitted.grey[0], asked[name].limit)
    return {name: signature.second(texts, firsts[name], unclear) for name, signature in asked.items()}
