"""The reader learns to mark: a loss by hand, positions of answers, a folder that answers as it was judged."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.rows import answered_rows
from fixtures.training import fine_tune

from smallfirst.data.dataset import Dataset
from smallfirst.errors import ConfigError
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Request
from smallfirst.models.spans.occurrences import CharSpan
from smallfirst.models.spans.reader import Window
from smallfirst.tasks.answer import Answer
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.reading import PointerModel, ReadingRecipe, WindowRow
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("module_home")
CONFIG = TrainConfig(duration="12ep", learning_rate=5e-3, batch_tokens=96, max_seq_tokens=32)
TASK = Answer(name="desk", not_answerable="not here", max_answer_tokens=8)
FRAMES = ("where is my {} today", "the {} is late", "tell me about the {}", "no {} for a week", "my {}")


def rows_of(path: str, things: tuple[str, ...]) -> Dataset:
    """What thing is a context about? Every fifth context holds none."""
    found = [(f"{frame.format(thing)}\n\nwhat is it about?", thing) for frame in FRAMES for thing in things]
    found += [(f"tell me where it is {word}\n\nwhat is it about?", "not here") for word in ("today", "late", "now", "")]
    return answered_rows(path, *found, shape="question")


@pytest.fixture(scope="module")
def recipe() -> ReadingRecipe:
    things = ("card", "refund", "exchange", "rate", "payment")
    return ReadingRecipe(TASK, rows_of("train.jsonl", things), rows_of("validation.jsonl", ("card", "rate", "refund")))


@pytest.fixture(scope="module")
def trained(recipe: ReadingRecipe, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fine_tune(recipe, CONFIG, tiny_encoder_folder, tmp_path_factory.mktemp("reader"))


def test_the_loss_of_windows_by_hand(tiny_encoder_folder: Path) -> None:
    model = PointerModel(SentenceEncoder(tiny_encoder_folder), 2)
    logits = {0: (1.0, 2.0), 2: (3.0, 0.0), 3: (0.0, 5.0)}
    states = torch.zeros(2, 4, 32)
    for at, (start, end) in logits.items():
        states[:, at, 0], states[:, at, 1] = start, end
    model.encoder.hidden_states = lambda encoded: (states, None)  # type: ignore[method-assign, assignment]
    model.heads.data[0, 0] = model.heads.data[1, 1] = 1
    window = Window((1, 2, 3, 4), 2, (CharSpan(0, 1), CharSpan(1, 2)))
    loss = model.loss([WindowRow(window, ((2, 3), (2, 2))), WindowRow(window, ())])
    scores = [3 + 0 - 3, 3 + 5 - 3, 0 + 5 - 3]  # spans (2, 2), (2, 3), (3, 3), against the null's 1 + 2
    everything = math.log(1 + sum(math.exp(score) for score in scores))
    right = math.log(math.exp(scores[0]) + math.exp(scores[1]))
    assert loss.item() == pytest.approx((everything - right + everything - 0) / 2, rel=1e-5)


def test_rows_become_windows_with_every_place_of_the_answer(tiny_encoder_folder: Path) -> None:
    tokenizer = SentenceEncoder(tiny_encoder_folder).tokenizer
    data = answered_rows(
        "t",
        ("my card and the card\n\nwhat?", "card"),
        ("my card\n\nwhat?", "Not here!"),
        ("my card\n\nwhat?", "in other words"),
        (f"my card {'is late ' * 40}\n\nwhat?", "card"),
        ("where is it\n\nwhat?", " ".join(["where is it"] * 9)),
        shape="question",
    )
    rows = ReadingRecipe(TASK, data, data).prepare(tokenizer, CONFIG, "x").rows
    marked = [[tokenizer.decode(row.ids[first : last + 1]).strip() for first, last in row.spans] for row in rows]
    assert marked[:3] == [["card", "card"], [], ["card"]]
    assert marked[3:] == [[]] * (len(marked) - 3)
    assert len(marked) > 4  # the third row is left out, the fourth has several windows, the fifth is left out


def test_training_learns_to_mark_and_to_say_that_nothing_is_there(trained: Run, recipe: ReadingRecipe) -> None:
    assert max(value for _, value in trained.validation_curve) >= 0.8


def test_the_folder_is_a_model_that_answers_as_it_was_judged(trained: Run, recipe: ReadingRecipe) -> None:
    async def answers() -> list[str]:
        model = load_model(trained.folder)
        found = [(await model.complete(Request.ask(e.text))).text for e in recipe.selection.examples]
        await model.aclose()
        return found

    said = asyncio.run(answers())
    scores = [TASK.score(e.golds, answer) for e, answer in zip(recipe.selection.examples, said, strict=True)]
    assert np.mean(scores) == max(value for _, value in trained.validation_curve)
    assert TASK.not_answerable in said
    manifest = read_manifest(trained.folder)
    assert (manifest.kind, manifest.base, manifest.max_tokens) == ("reader", "toys/tiny", 32)


def test_rows_without_a_single_marked_answer_are_refused(tiny_encoder_folder: Path) -> None:
    data = answered_rows("t", ("my card\n\nwhat?", "in other words"), shape="question")
    with pytest.raises(ConfigError, match="nothing to mark"):
        ReadingRecipe(TASK, data, data).prepare(SentenceEncoder(tiny_encoder_folder).tokenizer, CONFIG, "x")
