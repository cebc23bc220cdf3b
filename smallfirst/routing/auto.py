"""Auto: one name for every task. A TaskSelector finds the Router; what belongs to no task goes to the general model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Self

from smallfirst.base.errors import ModelError
from smallfirst.base.records import Record
from smallfirst.models.batching import BatchWorker
from smallfirst.models.pricing import Charge, MachinePrice, itemized
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    Model,
    Request,
    Route,
    RouteStep,
    max_answer_tokens,
    open_stream,
)
from smallfirst.routing.domain import TaskProfile
from smallfirst.routing.policies import is_conversation

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
    """Profiles of several tasks side by side. Not thread-safe.

    A request belongs to the task of the lowest out-of-domain score within its threshold, or to none. Between about
    equal scores the likelihood of the words decides. Hidden states are read only where words leave it open; they cannot
    make a text more ordinary than a clear case, so skipping them changes no selection.
    """

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
        scores, by_states = _score(asked, text)
        task, why = self._decide(text, scores, by_states)
        busy_s = time.perf_counter() - began
        charge = self._price.charge("auto", busy_s)
        return TaskSelection(
            task=task,
            scores=scores,
            threshold=self._threshold_of(task or min(scores, key=lambda name: scores[name], default=None)),
            why=why,
            by_states=bool(by_states),
            cost_usd=charge.usd,
            charges=(charge,),
            latency_ms=busy_s * 1000,
        )

    def _threshold_of(self, task: str | None) -> float | None:
        return None if task is None else self.profiles[task].threshold

    def _decide(self, text: str, scores: Mapping[str, float], by_states: Collection[str]) -> tuple[str | None, str]:
        if not scores:
            return None, "a conversation, while every task expects a single message" if self.profiles else "no tasks"

        def describe(name: str) -> str:
            by, limit = "words and meaning" if name in by_states else "words", self.profiles[name].threshold
            return f"{name} (out-of-domain score {scores[name]:.3f} by {by}, threshold {limit:.3f})"

        order = sorted(scores, key=lambda name: scores[name])
        candidates = [name for name in order if scores[name] <= self.profiles[name].threshold]
        if not candidates:
            return None, f"belongs to no task; nearest is {describe(order[0])}"
        close = [name for name in candidates if scores[name] - scores[candidates[0]] <= TIE]
        if len(close) == 1:
            return close[0], f"like requests of {describe(close[0])}"
        likeliest = max(close, key=lambda name: self.profiles[name].text_features.log_likelihood(text))
        others = ", ".join(name for name in close if name != likeliest)
        return likeliest, f"its words are likelier in {describe(likeliest)} than in {others}"


def _score(profiles: Mapping[str, TaskProfile], text: str) -> tuple[dict[str, float], set[str]]:
    """Return the scores of a text by task, and those for which hidden states were read.

    They are read where no task's words find it clearly its own.
    """
    words = {name: profile.word_scores([text]) for name, profile in profiles.items()}
    scores = {name: float(score[0]) for name, score in words.items()}
    if any(scores[name] <= min(one.parameters.grey[0], one.threshold) for name, one in profiles.items()):
        return scores, set()
    unclear = {name for name, one in profiles.items() if one.in_grey_zone(words[name])[0]}
    return scores | {name: profiles[name].measure([text])[0].ood_score for name in unclear}, unclear


class AutoRouter:
    """Routers by task behind one name, itself a Model."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})
    """Streaming only: embeddings and label probabilities belong to one task's model."""

    name = "auto"

    def __init__(self, selector: TaskSelector, routers: Mapping[str, Model], general: Model | None) -> None:
        self.routers, self.general = dict(routers), general
        self._worker: BatchWorker[Request, TaskSelection] = BatchWorker(
            lambda requests: [selector.select(request) for request in requests], name=self.name, max_batch_size=8
        )

    @property
    def max_answer_tokens(self) -> int | None:
        return max_answer_tokens(*self.routers.values(), self.general)

    async def complete(self, request: Request) -> Completion:
        """Return the answer of the task's Router, or of the general model. Raise ModelError if there is neither."""
        selection, model = await self._select(request)
        return _with_selection(selection, await model.complete(request))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        selection, model = await self._select(request)
        async with open_stream(model, request) as chunks:
            async for chunk in chunks:
                if chunk.completion is not None:
                    chunk = Chunk(completion=_with_selection(selection, chunk.completion))
                yield chunk

    async def aclose(self) -> None:
        await self._worker.aclose()
        for model in {id(m): m for m in (*self.routers.values(), self.general) if m}.values():
            await model.aclose()

    async def _select(self, request: Request) -> tuple[TaskSelection, Model]:
        selection = await self._worker.submit(request)
        model = self.routers.get(selection.task) if selection.task else self.general
        if model is None:
            raise ModelError(f"{self.name}: {selection.why}, and there is no general model to ask")
        return selection, model


def _with_selection(selection: TaskSelection, completion: Completion) -> Completion:
    scores = selection.scores
    step = RouteStep(
        stage="auto",
        decision="passed on",
        why=selection.why,
        score=scores.get(selection.task) if selection.task else min(scores.values(), default=None),
        threshold=selection.threshold,
        cost_usd=selection.cost_usd,
        latency_ms=selection.latency_ms,
    )
    route = completion.route
    if route is None:
        last = RouteStep(
            stage="large",
            decision="answered",
            why="the request belongs to no task",
            model=completion.answered_by,
            cost_usd=completion.cost_usd,
            latency_ms=completion.latency_ms,
        )
        route = Route(stage="large", why=selection.why, certified=False, trail=(last,))
    return completion.with_charges(
        (*itemized("auto", selection.cost_usd, selection.charges), *completion.charges),
        route=route.model_copy(update={"trail": (step, *route.trail)}),
        latency_ms=completion.latency_ms + selection.latency_ms,
    )
