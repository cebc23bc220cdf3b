"""The reader marks the likeliest span over all windows of a context, or says that there is none."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.spans.reader import PointerNetwork, Reader, windows_of
from smallfirst.tasks.answer import Answer

TASK = Answer(name="rules", max_answer_tokens=2)


class MarkedTokens:
    """Instead of an encoder: a token's first state is its start logit, its second the end logit, 0 for the null."""

    width, engine = 2, True

    def __init__(self, tokenizer: Any, starts: dict[str, float], ends: dict[str, float]) -> None:
        self.tokenizer, self.starts, self.ends = tokenizer, starts, ends

    def hidden_states(self, encoded: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, encoded))
        states = torch.zeros(len(encoded), width, 2)
        for i, ids in enumerate(encoded):
            for at, token in enumerate(ids):
                word = self.tokenizer.decode([token]).strip()
                other = -9.0 if at else 0.0
                states[i, at] = torch.tensor([self.starts.get(word, other), self.ends.get(word, other)])
        return states, torch.ones(len(encoded), width)


HEADS = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def pointer(encoder: Any, heads: torch.Tensor = HEADS) -> PointerNetwork:
    network = PointerNetwork(encoder, 2).eval()
    network.heads.data = heads
    return network


class Marks(NamedTuple):
    starts: dict[str, float]
    ends: dict[str, float]


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder_folder: Path) -> Any:
    return SentenceEncoder(tiny_encoder_folder).tokenizer


def make_reader(tokenizer: Any, marks: Marks, *, task: Answer = TASK, max_tokens: int = 512) -> Reader:
    encoder: Any = MarkedTokens(tokenizer, *marks)
    return Reader(pointer(encoder), Manifest(kind="reader", task=task, base="", max_tokens=max_tokens))


def test_windows_hold_the_whole_context_and_overlap(tokenizer: Any) -> None:
    question, context = "which card?", "my card is late and the refund is missing " * 6
    windows = windows_of(question, context, tokenizer, 32)
    seen = [0] * len(context)
    for window in windows:
        assert len(window.ids) <= 32
        assert window.ids[: window.first] == windows[0].ids[: window.first]  # the question
        for place in window.places:
            for i in range(place.start, place.end):
                seen[i] += 1
    assert min(count for count, c in zip(seen, context, strict=True) if c != " ") == 1
    assert max(seen) >= 2


def test_a_question_that_is_too_long_is_cut_and_none_is_refused(tokenizer: Any) -> None:
    windows = windows_of("why is it late " * 50, "refund", tokenizer, 32)
    assert [len(window.places) > 0 for window in windows] == [True]
    assert len(windows[0].ids) <= 32
    assert windows_of("why", "", tokenizer, 32)[0].places == ()


def test_the_answer_is_the_likeliest_span_of_all_windows(tokenizer: Any) -> None:
    reader = make_reader(tokenizer, Marks({"card": 2.0, "refund": 3.0}, {"card": 2.0, "refund": 1.0}), max_tokens=24)
    texts = ["my late rate " * 9 + "card " + "my late rate " * 9 + "\n\nwhich?", "my refund\n\nwhich?"]
    first, second = reader.answer(texts)
    assert (first.text, second.text, first.field_confidence) == ("card", "refund", {})
    assert first.n_tokens > 60
    assert second.n_tokens < 12


def test_places_with_the_same_words_share_their_probability(tokenizer: Any) -> None:
    reader = make_reader(tokenizer, Marks({"card": 2.0, "pin": 2.5}, {"card": 2.0, "pin": 2.0}), task=TASK)
    one, two = reader.read(["my pin or my card\n\nwhich?", "my pin or my card or my Card, my card\n\nwhich?"])
    assert (one.text, two.text) == ("pin", "card")


def test_a_question_without_an_answer(tokenizer: Any) -> None:
    task = TASK.model_copy(update={"not_answerable": "not in the rules"})
    marks = Marks({"card": 2.0, "refund": -5.0}, {"card": 2.0, "refund": -5.0})
    said = make_reader(tokenizer, marks, task=task).read(["my card\n\nwhich?", "my refund\n\nwhich?", "which?"])
    assert [one.text for one in said] == ["card", "not in the rules", "not in the rules"]
    assert math.exp(said[2].nats) == 1
    forced = make_reader(tokenizer, marks).answer(["my refund\n\nwhich?", "which?"])
    assert [(one.text, one.confidence > 0.5) for one in forced] == [("refund", True), ("", False)]


def test_an_answer_comes_with_page_offset_and_words(tokenizer: Any) -> None:
    task = TASK.model_copy(update={"not_answerable": "not in the rules"})
    reader = make_reader(tokenizer, Marks({"card": 2.0, "refund": -5.0}, {"card": 2.0, "refund": -5.0}), task=task)
    text = " \r\nmy late\r\n\r\nrate\f my refund\r\n or my card\r\n\r\nwhich?"
    found, none = reader.answer([text, "my refund\n\nwhich?"])
    place = found.read["answer"]
    assert (found.text, place.page, place.words, text[place.start : place.end]) == ("card", 2, "card", "card")
    assert text.split("\f")[1][place.offset :].startswith("card")
    assert (none.text, none.read) == ("not in the rules", {})


def test_a_folder_reads_as_what_was_saved(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(tiny_encoder_folder)
    heads = torch.randn(2, 33, generator=torch.Generator().manual_seed(0))
    network, manifest = pointer(encoder, heads), Manifest(kind="reader", task=TASK, base="x")
    network.save(tmp_path)
    texts = ["my card is late\n\nwhat is late?", "the refund of May\n\nwhen?"]
    ours, theirs = Reader(network, manifest).read(texts), Reader.load(tmp_path, manifest).read(texts)
    assert [one._replace(nats=0.0) for one in ours] == [one._replace(nats=0.0) for one in theirs]
    assert [one.nats for one in ours] == pytest.approx([one.nats for one in theirs], abs=1e-5)
