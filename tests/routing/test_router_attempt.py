"""Which settings of a request take an answer out of its certificate: those that changed it, and no others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fixtures.certificates import certificate
from fixtures.server import WholeModel

from smallfirst.data.dataset import Dataset
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.label_model import LabelModel
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Completion, Model, Request, ResponseFormat
from smallfirst.routing.router import Router, Stage, changed_by, took_cascade
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify

ANY_JSON = ResponseFormat(kind="json_object")
CHOSEN = frozenset({Capability.CHOSEN})
SAMPLED = "temperature 1.5: certified are answers at temperature 0"


class Small(WholeModel):
    """Answers surely, with any fields of its Completion changed."""

    def __init__(self, name: str = "small", capabilities: frozenset[Capability] = frozenset(), **fields: Any) -> None:
        self.name, self.capabilities, self.fields = name, capabilities, fields
        self.max_answer_tokens = 64

    async def complete(self, request: Request) -> Completion:
        fields = {"text": self.name, "confidence": 0.95, **self.fields}
        return Completion(answered_by=self.name, latency_ms=1.0, cost_usd=0.0, **fields)


def ask(model: Model, *requests: Request) -> list[Completion]:
    async def all_of_them() -> list[Completion]:
        found = [await model.complete(request) for request in requests]
        await model.aclose()
        return found

    return asyncio.run(all_of_them())


def asked(**settings: Any) -> Request:
    return Request.ask("where is my card").model_copy(update=settings)


@pytest.mark.parametrize(
    ("settings", "answer", "why"),
    [
        ({}, {}, ""),
        ({"temperature": 1.5, "seed": 3}, {}, SAMPLED),
        ({"seed": 3, "logprobs": 5, "tags": {"user": "u"}}, {}, ""),
        ({"max_tokens": 3}, {"completion_tokens": 2}, ""),
        (
            {"max_tokens": 3},
            {"finish_reason": "length", "completion_tokens": 3},
            "max_tokens 3 cut the answer off: certified are answers of up to 64 tokens",
        ),
        ({"max_tokens": 64}, {"finish_reason": "length", "completion_tokens": 64}, ""),
        ({"max_tokens": 4000}, {"finish_reason": "length", "completion_tokens": 64}, ""),
        (
            {"max_tokens": 4000},
            {"completion_tokens": 300},
            "max_tokens 4000: certified are answers of up to 64 tokens, and this one is longer",
        ),
        ({"stop": ("\n",)}, {"stopped": False}, ""),
        ({"stop": ("\n",)}, {"stopped": True}, "stop: one of its texts ended the answer, and certified are whole ones"),
        ({"stop": ("\n",)}, {}, "stop: one of its texts may have ended the answer, and certified are whole ones"),
        ({"response_format": ANY_JSON}, {}, ""),  # without JSON a model does not follow it
    ],
)
def test_a_setting_counts_where_it_changed_the_answer(settings: Any, answer: Any, why: str) -> None:
    request, small = asked(**settings), Small(**answer)
    (found,) = ask(small, request)
    assert changed_by(request, small, found) == why
    assert changed_by(request, Small(capabilities=CHOSEN), found) == ""
    (routed,) = ask(Router(small, Small("large"), certificate(0.8)), request)
    assert routed.route is not None
    assert (routed.route.certified, routed.answered_by) == ((False, "large") if why else (True, "small"))
    if why:
        assert routed.route.why == routed.route.trail[0].why == why
        assert not took_cascade(routed.route)


def test_a_format_of_the_request_counts_where_the_task_has_none() -> None:
    request, small = asked(response_format=ANY_JSON), Small(capabilities=frozenset({Capability.JSON}))
    assert changed_by(request, small, ask(small, request)[0]) == "response_format: certified are answers without one"


@pytest.mark.parametrize(
    ("changes", "stage", "why"),
    [
        ({"threshold": 0.0, "below": "escalate"}, "small", f"{SAMPLED}, and there is no large model to ask"),
        ({"below": "abstain"}, "person", f"{SAMPLED}, and there is no large model: left to a person"),
    ],
)
def test_without_a_large_model_the_answer_is_given_uncertified(changes: Any, stage: str, why: str) -> None:
    (found,) = ask(Router(Small(), None, certificate(**changes)), asked(temperature=1.5))
    assert found.route is not None
    assert (found.route.stage, found.route.why, found.route.certified) == (stage, why, False)


@pytest.mark.parametrize(
    ("first", "last", "answered_by"),
    [
        (CHOSEN, frozenset(), "words"),
        (frozenset(), CHOSEN, "large"),  # what the second stage accepts was certified on what the first one passes on
    ],
)
def test_in_a_cascade_stages_before_the_first_that_generates_keep_their_certificate(
    first: frozenset[Capability], last: frozenset[Capability], answered_by: str
) -> None:
    stages = (Stage("words", Small("words", first)), Stage("small", Small("small", last)))
    router = Router(stages, Small("large"), certificate(0.8, thresholds={"words": 0.8, "small": 0.8}))
    certain, sampled = ask(router, asked(), asked(temperature=1.5))
    assert (certain.answered_by, sampled.answered_by) == ("words", answered_by)
    assert sampled.route is not None
    assert sampled.route.certified == (answered_by == "words")


def test_sampled_answers_of_a_model_that_generates_are_never_certified(lively: tuple[Any, Any]) -> None:
    manifest = Manifest(kind="generative", task=Answer(name="rules", max_answer_tokens=6), base="tiny")
    small = GenerativeModel.fine_tuned(Generator(*lively), manifest)
    texts = [f"the card {i}" for i in range(12)]
    sampled = [Request.ask(text).model_copy(update={"temperature": 1.5, "seed": i}) for i, text in enumerate(texts)]
    stopped = Request.ask(texts[0]).model_copy(update={"stop": ("a", "e", "i", "o", "u")})
    spared = stopped.model_copy(update={"stop": ("\u2603",)})
    cut = Request.ask(texts[0], max_tokens=2)
    router = Router(small, Small("large"), certificate(0.0))
    found = ask(router, *map(Request.ask, texts), *sampled, stopped, spared, cut)
    certified = [answer.route is not None and answer.route.certified for answer in found]
    assert certified == [True] * 12 + [False] * 12 + [False, True, False]
    assert [answer.answered_by for answer in found[12:24]] == ["large"] * 12


def test_a_linear_model_answers_and_certifies_the_same_at_every_setting(
    toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify
) -> None:
    scorer = LinearClassifier.fit("words", toy_rows, toy_task)
    small = LabelModel(scorer, Manifest(kind="words", task=toy_task, base=""))
    settings = {"temperature": 1.5, "seed": 7, "max_tokens": 1, "stop": ("a",)}
    plain = [Request.ask(example.text) for example in toy_selection.examples]
    changed = [request.model_copy(update=settings) for request in plain]
    found = ask(Router(small, Small("large"), certificate(0.0)), *plain, *changed)
    assert all(answer.route is not None and answer.route.certified for answer in found)
    assert [answer.text for answer in found[: len(plain)]] == [answer.text for answer in found[len(plain) :]]
