"""A general model answers a task from instructions and solved examples."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.rows import answered_rows
from fixtures.server import SayingModel

from smallfirst.models.few_shot import NearestShots, PromptedModel, fixed_shots
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.task import Shot

TASK = Classify(name="cards", labels=("card_lost", "card_stolen"))


def parrot(text: str = "card_lost") -> SayingModel:
    return SayingModel("parrot", text, cost_usd=0.5)


def ask(model: Model, max_tokens: int = 256) -> Completion:
    return asyncio.run(model.complete(Request.ask("it is gone", max_tokens=max_tokens)))


@pytest.mark.parametrize(
    ("text", "answer"), [("Label: **Card lost**.", "card_lost"), ("I cannot tell.", "I cannot tell.")]
)
async def test_the_answer_is_the_parsed_label_or_else_the_models_own_words(text: str, answer: str) -> None:
    model = PromptedModel(parrot(text), TASK)
    found = await model.complete(Request.ask("it is gone"))
    assert (found.text, found.answered_by, found.cost_usd) == (answer, "parrot", 0.5)
    assert [chunk.text async for chunk in model.stream(Request.ask("it is gone"))] == [answer, ""]


dataset = partial(answered_rows, "rows")
DESK = Classify(name="desk", labels=("card", "fee"))
TRAIN = dataset(
    ("ccccc", "card"), ("c", "card"), ("ccc", "card"), ("cc", "card"), ("cccc", "card"), ("ffff", "fee"), ("f", "fee")
)


def test_for_each_label_the_rows_of_median_length_are_shown_and_labels_take_turns() -> None:
    assert fixed_shots(TRAIN, DESK, 1) == (Shot("ccc", "card"), Shot("f", "fee"))
    assert fixed_shots(TRAIN, DESK, 3) == (
        Shot("cc", "card"),
        Shot("f", "fee"),
        Shot("ccc", "card"),
        Shot("ffff", "fee"),
        Shot("cccc", "card"),
    )
    assert fixed_shots(TRAIN, DESK, 0) == ()


class Letters:
    """Turns a text into the share of its letters a and b, at unit length; counts the texts."""

    fingerprint, n_read = "one", 0

    def embed(self, texts: list[str]) -> np.ndarray:
        self.n_read += len(texts)
        counts = np.array([[text.count("a"), text.count("b")] for text in texts], dtype=float)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_the_nearest_rows_are_shown_and_their_vectors_kept_until_rows_or_encoder_change(tmp_path: Path) -> None:
    letters: Any = Letters()
    rows = dataset(("bbb", "fee"), ("aaab", "card"), ("aabb", "card"))
    for _ in range(2):
        assert NearestShots(rows, letters, 2, cache=tmp_path).select("aaaa") == [
            Shot("aabb", "card"),
            Shot("aaab", "card"),
        ]
    assert letters.n_read == 3 + 2  # rows once, the text twice
    NearestShots(dataset(("ab", "fee")), letters, 1, cache=tmp_path)
    letters.fingerprint = "two"
    NearestShots(rows, letters, 1, cache=tmp_path)
    assert letters.n_read == 5 + 1 + 3


def test_the_answer_is_short_and_closing_closes_the_general_model() -> None:
    said = parrot()
    model = PromptedModel(said, TASK)
    assert isinstance(model, Model)
    assert model.name == "parrot"
    ask(model)
    ask(model, max_tokens=5)
    assert [request.max_tokens for request in said.asked] == [32, 5]
    asyncio.run(model.aclose())
    assert said.closed == 1
