"""A small answer carries the probability of every option, or is not given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from smallfirst.gateway.decisions.small import answer_small
from smallfirst.gateway.takeover.live_task import Ruling
from smallfirst.models.protocol import Capability, Completion, LabelScores
from smallfirst.traffic.decisions import openai_shape
from smallfirst.traffic.messages import Answer


class Scoring:
    """A model whose probabilities are given."""

    capabilities = frozenset({Capability.LABEL_PROBABILITIES})
    name = "team-small@1"

    def __init__(self, **shares):
        self.shares = shares

    async def probabilities(self, texts):
        assert texts == ["My card"]
        return [LabelScores(tuple(self.shares), list(self.shares.values()), 1, 0.0)]


def ruled(text="fees", alternatives=(), model=None, agreement=False):
    stages = (SimpleNamespace(model=model),) if model else ()
    router = SimpleNamespace(router=SimpleNamespace(stages=stages))
    task = SimpleNamespace(agreement=agreement, taken=SimpleNamespace(task="team"), router=router)
    small = text and Completion(
        text=text, answered_by=Scoring.name, latency_ms=1, cost_usd=0, alternatives=alternatives, prompt_tokens=3
    )
    return Ruling(task, SimpleNamespace(text="My card"), None, small or None, Answer(text))


@pytest.fixture
def question(ticket):
    return openai_shape.read_request(ticket).questions[1]  # cards, fees, other


@pytest.mark.parametrize(
    ("one", "probabilities"),
    [
        (ruled(alternatives=(("fees", 0.75), ("cards", 0.25))), (0.25, 0.75, 0.0)),
        (ruled(alternatives=(("fees", 0.5),), model=Scoring(cards=0.2, fees=0.5, other=0.3)), (0.2, 0.5, 0.3)),
        (ruled(alternatives=(("fees", 0.5),), model=Scoring(fees=0.5, cards=0.25, lost=0.25)), (1 / 3, 2 / 3, 0.0)),
        (ruled(), (0.0, 1.0, 0.0)),
    ],
)
async def test_every_option_has_a_probability(question, one, probabilities):
    answer = await answer_small(one, question)
    assert answer.verdict.probabilities == pytest.approx(probabilities)
    assert (answer.by, answer.task, answer.usage.input_tokens) == ("team-small@1", "team", 3)


@pytest.mark.parametrize(
    "one",
    [
        ruled(text=""),
        ruled(text="loans"),
        ruled(alternatives=(("fees", 0.4),), model=Scoring(cards=0.6, fees=0.4)),
        ruled(alternatives=(("fees", 0.4),), model=Scoring(loans=1.0)),
    ],
)
async def test_without_a_certified_label_that_its_probabilities_prefer_the_upstream_answers(question, one):
    assert await answer_small(one, question) is None


async def test_it_says_whose_labels_the_probabilities_are_calibrated_on(question):
    given = [await answer_small(ruled(agreement=agreement), question) for agreement in (True, False)]
    assert [one.probabilities for one in given] == ["calibrated to the large model", "calibrated"]
