"""What an endpoint serves: shares are kept, and those of one user go to the same entity."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest
from fixtures.endpoints import NAME, register_words
from fixtures.server import SayingModel

from smallfirst.data.dataset import Dataset
from smallfirst.deployment.endpoint_plan import TrafficSplit, load_endpoint
from smallfirst.models.protocol import Capability, Completion, Model, Request
from smallfirst.tasks.classify import Classify


def ask(model: Model, text: str = "where is my card", **tags: str) -> Completion:
    return asyncio.run(model.complete(Request.ask(text).model_copy(update={"tags": tags})))


def split(**percent: int) -> TrafficSplit:
    models = {name: SayingModel(name, cost_usd=0.5, confidence=0.7) for name in percent}
    return TrafficSplit("desk", models, percent, chance=random.Random(1).random)


def test_each_entity_gets_its_share_of_requests_by_chance() -> None:
    both = split(ours=80, big=20)
    found = Counter(ask(both).text for _ in range(2000))
    assert found["ours"] / 2000 == pytest.approx(0.8, abs=0.03)
    assert set(found) == {"ours", "big"}


def test_requests_of_a_user_go_to_the_same_entity_in_the_given_shares() -> None:
    both = split(ours=80, big=20)
    first = {f"u{i}": ask(both, user=f"u{i}").text for i in range(1000)}
    assert all(ask(both, "other text", user=user).text == entity for user, entity in first.items())
    assert Counter(first.values())["ours"] / 1000 == pytest.approx(0.8, abs=0.04)


def test_an_answer_says_which_entity_gave_it_and_why() -> None:
    route = ask(split(ours=100, spare=0), user="x").route
    assert route is not None
    both = ask(split(ours=60, big=40), user="x")
    assert both.route.stage == both.text == both.answered_by
    assert both.route.why == f"{60 if both.text == 'ours' else 40} % go there, by user"
    (step,) = both.route.trail
    assert (step.why, step.model) == (f"{both.route.why}: to {both.text}", "")  # a model would make it a draft
    assert (both.route.certified, both.route.confidence) == (False, 0.7)


def test_a_version_and_an_alias_are_served_under_the_endpoints_name_and_each_entity_alone(
    tmp_path: Path, toy_rows: Dataset, toy_task: Classify
) -> None:
    for live in (True, False):
        register_words(tmp_path / "m", toy_rows, toy_task, live=live)
    built = load_endpoint("desk", {"tickets": f"{NAME}@champion", "next": f"{NAME}/2"}, {"tickets": 100, "next": 0})
    assert set(built.models) == {"desk", "desk/tickets", "desk/next"}
    assert built.versions == {"tickets": 1, "next": 2}
    found = ask(built.models["desk"])
    assert (found.text, found.answered_by) == ("card_arrival", "tickets@1")
    assert found.route.stage == "tickets"
    assert {Capability.STREAM, Capability.READINESS} <= built.models["desk"].capabilities
    asyncio.run(built.aclose())
