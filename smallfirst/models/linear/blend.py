"""A blend: the label probabilities of several models in one, a weighted geometric mean (Genest and Zidek 1986)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy import special

from smallfirst.base.errors import ModelError
from smallfirst.models.label_model import likeliest
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import total_usd
from smallfirst.models.protocol import (
    Bill,
    Capability,
    Completion,
    LabelScores,
    MembersModel,
    Model,
    Request,
    label_probability_model,
)

MEMBERS_FOLDER = "members"
"""Folder in a blend's folder with one model folder for each member."""
MAX_MEMBERS = 3
STEPS = 10
"""Weights are multiples of one over this."""
LEAST_GAIN = 0.02
"""Share of the loss on selection rows that a further member must save, to be worth its price."""


class BlendModel(MembersModel):
    """Members asked at the same time; the answer has their summed price and the time of the slowest."""

    max_answer_tokens = 1
    capabilities = frozenset({Capability.CHOSEN, Capability.LABEL_PROBABILITIES, Capability.READINESS})

    def __init__(self, members: Mapping[str, Model], manifest: Manifest, *, name: str = "") -> None:
        """Take the members by name; `manifest.member_weights` says how much each counts."""
        self.name, self.manifest, self._by_name = name or manifest.task.name, manifest, members
        self.members = members.values()

    async def complete(self, request: Request) -> Completion:
        began = time.perf_counter()
        (scored,) = await self.probabilities([request.text], request.bill)
        return Completion(
            **likeliest(scored.labels, scored.probabilities),
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            cost_usd=total_usd(scored.charges),
            charges=scored.charges,
            prompt_tokens=scored.n_tokens,
            completion_tokens=1,
        )

    async def probabilities(self, texts: Sequence[str], bill: Bill | None = None) -> list[LabelScores]:
        weights = self.manifest.member_weights
        found = await asyncio.gather(*(label_scores(self._by_name[name], texts, bill) for name in weights))
        of_members = [log_probabilities(scores) for scores in found]
        mixed = special.softmax(mix(of_members, list(weights.values())) / self.manifest.temperature, axis=1)
        return [
            LabelScores(
                labels=self.manifest.task.closed,
                probabilities=row.tolist(),
                n_tokens=sum(scores[i].n_tokens for scores in found),
                charges=tuple(charge for scores in found for charge in scores[i].charges),
            )
            for i, row in enumerate(mixed)
        ]


async def label_scores(model: Model, texts: Sequence[str], bill: Bill | None = None) -> list[LabelScores]:
    """Return the model's label probabilities. Raise ModelError if it has none."""
    able = label_probability_model(model)
    if able is None:
        raise ModelError(f"{model.name} has no label probabilities")
    return await able.probabilities(texts, bill)


def log_probabilities(scores: Sequence[LabelScores]) -> np.ndarray:
    """Return log-probabilities (texts, labels) in nats, finite."""
    return np.log(np.maximum([one.probabilities for one in scores], 1e-30))


def mix(of_members: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return the log-probabilities (texts, labels) of the weighted geometric mean of the members', in nats."""
    mixed: np.ndarray = special.log_softmax(np.tensordot(weights, of_members, axes=1), axis=1)
    return mixed


def choose_weights(of_members: Mapping[str, np.ndarray], gold: np.ndarray) -> dict[str, float]:
    """Return the weights, which sum to 1, of least mean log loss on the rows with labels `gold` (rows,).

    Of all sets of at most MAX_MEMBERS members; a larger set is taken if it saves LEAST_GAIN of the loss of the best
    smaller one and is right at least as often. One member means that a blend gains nothing.
    """

    def judge(names: Sequence[str]) -> tuple[float, float, dict[str, float]]:
        found = []
        for shares in _shares(len(names), STEPS):
            mixed = mix([of_members[name] for name in names], shares)
            accuracy = float((mixed.argmax(axis=1) == gold).mean())
            found.append((float(-mixed[np.arange(len(gold)), gold].mean()), -accuracy, shares))
        loss, wrong, shares = min(found)
        return loss, -wrong, dict(zip(names, shares, strict=True))

    best = min((judge([name]) for name in of_members), key=lambda one: one[0])
    for n in range(2, min(MAX_MEMBERS, len(of_members)) + 1):
        larger = min((judge(names) for names in combinations(of_members, n)), key=lambda one: one[0])
        if larger[0] <= (1 - LEAST_GAIN) * best[0] and larger[1] >= best[1]:
            best = larger
    return best[2]


def _shares(n: int, left: int) -> list[tuple[float, ...]]:
    """Return every way to split `left` steps over `n` members with at least one step each."""
    if n == 1:
        return [(left / STEPS,)]
    return [(first / STEPS, *rest) for first in range(1, left - n + 2) for rest in _shares(n - 1, left - first)]
