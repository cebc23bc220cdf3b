"""The tagger: targets by hand, a run that learns to mark, a folder that answers as it was judged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.rows import answered_rows
from fixtures.training import answers, fine_tune

from smallfirst.base.errors import ConfigError
from smallfirst.data.dataset import Dataset
from smallfirst.data.pages import Span
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import read_manifest
from smallfirst.models.spans.reader import ContextWindow, PointerNetwork
from smallfirst.models.spans.tagger import TokenizedText
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.extract import Extract
from smallfirst.training.config import TrainConfig
from smallfirst.training.marking import (
    IGNORED,
    ReadingBackend,
    ReadingRecipe,
    TaggedRow,
    TaggingRecipe,
    WindowRow,
    targets,
    token_range,
)
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("module_home")
CONFIG = TrainConfig(duration="10ep", learning_rate=3e-3, batch_tokens=32, max_seq_tokens=64)
SCHEMA = {
    "type": "object",
    "properties": {
        "thing": {"type": "string"},
        "count": {"type": ["integer", "null"]},
        "kind": {"enum": ["lost", "late"]},
        "topics": {"type": "array", "items": {"enum": ["search", "number", "delay"]}},
    },
    "required": ["thing", "count", "kind", "topics"],
}
THINGS = ("card", "envelope", "parcel", "refund", "pin", "passcode", "currency", "exchange")


def rows(name: str, numbers: range) -> Dataset:
    def row(n: int) -> tuple[str, str]:
        thing, kind, count = THINGS[n % 8], ("lost", "late")[n // 8 % 2], n % 5 + 2 if n % 3 else None
        about = f"{count} times" if count else "again"
        text = f"my {thing} is {'gone' if kind == 'lost' else 'slow'} {about} please"
        topics = ["search" if kind == "lost" else "delay", *["number"] * bool(count)][:: -1 if n % 2 else 1]
        topics = topics if n % 5 else []
        text += " never mind" * (not topics)
        answer = json.dumps({"thing": thing, "count": count, "kind": kind, "topics": topics})
        return text, answer

    return answered_rows(name, *map(row, numbers), shape="target")


@pytest.fixture(scope="module")
def recipe() -> TaggingRecipe:
    task = Extract(name="toy", json_schema=SCHEMA)
    return TaggingRecipe(task, rows("train.jsonl", range(120)), rows("selection.jsonl", range(120, 160)))


@pytest.fixture(scope="module")
def tuned(recipe: TaggingRecipe, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fine_tune(recipe, CONFIG, tiny_encoder_folder, tmp_path_factory.mktemp("tagger"))


def test_the_targets_of_a_value_are_at_its_likeliest_place_and_nothing_is_learned_at_the_others() -> None:
    logits = torch.zeros(2, 6, 5)
    logits[0, 4, 1] = 2  # field 0 begins most likely at the second place
    placed = TaggedRow((9,) * 6, ((0, ((0, 2), (4, 5))), (1, ((2, 4),))), ())
    short = TaggedRow((9,) * 2, ((1, ((0, 1),)), (0, ((0, 2),))), ())  # the second value is within the first
    assert targets([placed, short], logits).tolist() == [
        [IGNORED, IGNORED, 3, 4, 1, 0],
        [3, 0, IGNORED, IGNORED, IGNORED, IGNORED],
    ]


def test_a_place_is_all_tokens_that_touch_it() -> None:
    tokens = TokenizedText((1, 2, 3, 4), ((0, 0), (0, 3), (3, 5), (6, 8)))
    assert [token_range(tokens, place) for place in ((0, 4), (4, 7), (5, 6))] == [(1, 3), (2, 4), None]


def test_rows_hold_the_places_of_their_values_and_their_closed_values(
    recipe: TaggingRecipe, tiny_encoder_folder: Path
) -> None:
    _, reader = recipe.backend.load(tiny_encoder_folder, CONFIG)
    row = recipe.prepare(reader, CONFIG, "toys/tiny").rows[1]
    text = recipe.train_rows.examples[1].text
    places = reader.tokenize(text).places
    words = {field: text[places[a][0] : places[b - 1][1]].strip() for field, ((a, b),) in row.values}
    assert words == {0: "envelope", 1: "3"}
    kind, topics = row.closed
    assert isinstance(kind, int)
    assert recipe.plan.closed[0].values[kind] == '"lost"'
    assert (topics, recipe.plan.closed[1].values) == ((0, 1, 1), ('"delay"', '"number"', '"search"'))


def test_it_learns_to_mark_and_the_folder_answers_as_it_was_judged(tuned: Run, recipe: TaggingRecipe) -> None:
    examples = recipe.selection.examples
    found = answers(tuned.folder, *(example.text for example in examples))
    right = [recipe.task.score(e.golds, a.text) == 1 for e, a in zip(examples, found, strict=True)]
    assert (
        sum(right) / len(right) == max(value for _, value in tuned.validation_curve) > 0.8
    )  # bf16 or fp32, as was measured
    manifest = read_manifest(tuned.folder)
    assert (manifest.kind, manifest.base) == ("tagger", "toys/tiny")
    assert manifest.weights_fingerprint


def test_every_field_has_a_confidence_there_or_not(tuned: Run) -> None:
    long = "my parcel is gone 3 times please" + ", hello" * 100  # read in windows
    texts = ("my card is slow 4 times please", "my card is slow again please", "hello again", long)
    there, without, nothing, windows = answers(tuned.folder, *texts)
    assert (there.text, without.text) == (
        '{"thing": "card", "count": 4, "kind": "late", "topics": ["delay", "number"]}',
        '{"thing": "card", "count": null, "kind": "late", "topics": ["delay"]}',
    )
    for answer in (there, without):
        assert list(answer.field_confidence) == ["thing", "count", "kind", "topics"]
        assert all(0.5 < value <= 1 for value in answer.field_confidence.values())
        assert answer.confidence is not None
        assert 0 < answer.confidence <= 1
    assert json.loads(nothing.text)["thing"] in "hello again"  # what must be there is marked anyhow
    assert windows.prompt_tokens > 2 * CONFIG.max_seq_tokens
    assert json.loads(windows.text)["thing"] in long


READING_CONFIG = TrainConfig(duration="12ep", learning_rate=5e-3, batch_tokens=96, max_seq_tokens=32)
TASK = Answer(name="desk", not_answerable="not here", max_answer_tokens=8)
FRAMES = ("where is my {} today", "the {} is late", "tell me about the {}", "no {} for a week", "my {}")


def rows_of(path: str, things: tuple[str, ...]) -> Dataset:
    """What thing is a context about? Every fifth context holds none."""
    found = [(f"{frame.format(thing)}\n\nwhat is it about?", thing) for frame in FRAMES for thing in things]
    found += [(f"tell me where it is {word}\n\nwhat is it about?", "not here") for word in ("today", "late", "now", "")]
    return answered_rows(path, *found, shape="question")


@pytest.fixture(scope="module")
def reading() -> ReadingRecipe:
    things = ("card", "refund", "exchange", "rate", "payment")
    return ReadingRecipe(TASK, rows_of("train.jsonl", things), rows_of("validation.jsonl", ("card", "rate", "refund")))


@pytest.fixture(scope="module")
def trained(reading: ReadingRecipe, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fine_tune(reading, READING_CONFIG, tiny_encoder_folder, tmp_path_factory.mktemp("reader"))


def test_the_loss_of_windows_by_hand(tiny_encoder_folder: Path) -> None:
    model = PointerNetwork(SentenceEncoder(tiny_encoder_folder), 2)
    logits = {0: (1.0, 2.0), 2: (3.0, 0.0), 3: (0.0, 5.0)}
    states = torch.zeros(2, 4, 32)
    for at, (start, end) in logits.items():
        states[:, at, 0], states[:, at, 1] = start, end
    model.encoder.hidden_states = lambda encoded: (states, None)  # type: ignore[method-assign, assignment]
    model.heads.data[0, 0] = model.heads.data[1, 1] = 1
    window = ContextWindow((1, 2, 3, 4), 2, (Span(0, 1), Span(1, 2)))
    loss = ReadingBackend(2).loss(model, [WindowRow(window, ((2, 3), (2, 2))), WindowRow(window, ())])
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
    rows = ReadingRecipe(TASK, data, data).prepare(tokenizer, READING_CONFIG, "x").rows
    marked = [[tokenizer.decode(row.ids[first : last + 1]).strip() for first, last in row.spans] for row in rows]
    assert marked[:3] == [["card", "card"], [], ["card"]]
    assert marked[3:] == [[]] * (len(marked) - 3)
    assert len(marked) > 4  # the third row is left out, the fourth has several windows, the fifth is left out


def test_the_folder_is_a_model_that_answers_as_it_was_judged(trained: Run, reading: ReadingRecipe) -> None:
    said = [one.text for one in answers(trained.folder, *(e.text for e in reading.selection.examples))]
    scores = [TASK.score(e.golds, answer) for e, answer in zip(reading.selection.examples, said, strict=True)]
    assert np.mean(scores) == max(value for _, value in trained.validation_curve) >= 0.8
    assert TASK.not_answerable in said
    manifest = read_manifest(trained.folder)
    assert (manifest.kind, manifest.base, manifest.max_tokens) == ("reader", "toys/tiny", 32)


def test_rows_without_a_single_marked_answer_are_refused(tiny_encoder_folder: Path) -> None:
    data = answered_rows("t", ("my card\n\nwhat?", "in other words"), shape="question")
    with pytest.raises(ConfigError, match="nothing to mark"):
        ReadingRecipe(TASK, data, data).prepare(SentenceEncoder(tiny_encoder_folder).tokenizer, READING_CONFIG, "x")


def test_the_threshold_is_the_one_with_which_most_lists_of_labels_are_right(recipe: TaggingRecipe) -> None:
    """Right labels have a probability of at least 0.62 here, the others of at most 0.55."""
    values = recipe.plan.closed[1].values
    golds = [json.loads(example.answer)["topics"] for example in recipe.selection.examples]
    odds = [{"topics": np.array([0.5 if json.loads(v) in gold else 0.2 for v in values])} for gold in golds]
    assert recipe._label_threshold(odds) == 0.55
    assert recipe._label_threshold([{} for _ in golds]) == 0.5
