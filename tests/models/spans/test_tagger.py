"""Answers from label probabilities: values read and held to the schema, rivals weighed, confidences by field."""

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smallfirst.data.pages import SCANNED
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.spans.passages import Excerpt
from smallfirst.models.spans.plan import AnswerPlan, FieldPlan
from smallfirst.models.spans.tagger import Tagger, TaggerNetwork, TokenizedText, best_labels, chosen_labels
from smallfirst.tasks.extract import Extract

DAY = {"type": "string", "format": "date"}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "sent": DAY,
        "due": DAY,
        "tags": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["air", "rail"]},
        "moods": {"type": "array", "items": {"enum": ["calm", "rude"]}},
    },
    "required": ["city"],
}
FIELDS = (
    FieldPlan(path="city", way=("city",), how="span", forms=("text",), must=True),
    FieldPlan(path="due", way=("due",), how="span", forms=("date",)),
    FieldPlan(path="sent", way=("sent",), how="span", forms=("date",)),
    FieldPlan(path="tags", way=("tags", "[]"), how="span", forms=("text",)),
    FieldPlan(path="kind", way=("kind",), how="closed", values=("", '"air"', '"rail"')),
    FieldPlan(path="moods", way=("moods", "[]"), how="several", values=('"calm"', '"rude"')),
    FieldPlan(path="note", way=("note",), how="written"),  # of a fold's rows: it is left out
)
LABELS = {name: 1 + 2 * n for n, name in enumerate(("city", "due", "sent", "tags"))}


class Spelled:
    """A network that marks `city:Bern` as a city, and `~city:Rome` almost as surely; `+` goes on."""

    def __init__(self) -> None:
        self.plan, self.words = AnswerPlan(fields=FIELDS), list[str]()

    def tokenize(self, text: str) -> TokenizedText:
        found = list(re.finditer(r"\S+", text))
        first = len(self.words)
        self.words += [match[0] for match in found]
        places = ((match.start() + match[0].rfind(":") + 1, match.end()) for match in found)
        return TokenizedText(tuple(range(first, len(self.words))), tuple(places))

    def excerpt(self, text: str) -> Excerpt:
        return Excerpt(text, text)

    def query_of(self, number: int, value: int) -> int:
        return number

    def __call__(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        logits = torch.zeros(len(rows), max(map(len, rows)), 9)
        for n, row in enumerate(rows):
            for t, token in enumerate(row):
                name, _, word = self.words[token].rpartition(":")
                label = LABELS[name.strip("~+")] + ("+" in name) if word and name else 0
                logits[n, t, label] = 9 if "~" not in name else 8.5
        kinds = [float(any("flies" in self.words[token] for token in row)) for row in rows]
        moods = [[4.0 if "please" in own else -4.0, 1.0] for own in ({self.words[t] for t in row} for row in rows)]
        looks = torch.zeros(len(rows), 2, logits.shape[1])
        return logits, [torch.tensor([[0.0, 6 * fly, 0.0] for fly in kinds]), torch.tensor(moods)], looks


def tagger(threshold: float = 0.8) -> Tagger:
    task = Extract(name="trips", json_schema=SCHEMA)
    manifest = Manifest(kind="tagger", task=task, base="toy", label_threshold=threshold)
    return Tagger(Spelled(), manifest)  # type: ignore[arg-type]


def answer(text: str) -> tuple[Any, dict[str, float], float]:
    (found,) = tagger().answer([text])
    return json.loads(found.text), found.field_confidence, found.confidence


def test_marked_words_become_the_values_of_the_schema() -> None:
    said, confidence, whole = answer("flies to city:Bern due:2025-03-31 sent:2025-03-01 tags:far +tags:off tags:cold")
    assert said == {
        "city": "Bern",
        "sent": "2025-03-01",
        "due": "2025-03-31",
        "tags": ["far +tags:off", "cold"],
        "kind": "air",
    }
    assert list(confidence) == ["city", "due", "sent", "tags", "kind", "moods"]
    assert whole == pytest.approx(math.prod(confidence.values()))
    assert confidence["kind"] == pytest.approx(math.exp(6) / (math.exp(6) + 2))
    marked = math.exp(9) / (math.exp(9) + 8)
    assert confidence["city"] == pytest.approx(marked * (1 - 1 / (math.exp(9) + 8)))  # it begins there, and ends


def test_each_value_has_the_place_of_its_words_and_without_one_it_is_not_given() -> None:
    text = "a letter\fby air city:Bern\ftags:far tags:cold"
    (found,) = tagger().answer([text])
    assert json.loads(found.text) == {"city": "Bern", "tags": ["far", "cold"]}
    pages = {path: (place.page, place.offset, place.words) for path, place in found.read.items() if place}
    assert pages == {"city": (2, 12, "Bern"), "tags[0]": (3, 5, "far"), "tags[1]": (3, 14, "cold")}
    (found,) = tagger().answer(["to city:Bern by air, it flies"])
    assert found.read["kind"].words == "air"  # type: ignore[union-attr]
    (found,) = tagger().answer([f"city:Bern\f{SCANNED}"])
    assert (json.loads(found.text), found.confidence, set(found.field_confidence.values())) == (
        {"city": "Bern"},
        0,
        {0},
    )


def test_of_two_values_the_likelier_is_taken_and_its_rival_costs_confidence() -> None:
    said, confidence, _ = answer("from city:Bern to ~city:Rome")
    assert said["city"] == "Bern"
    assert 0.49 < confidence["city"] < 0.51
    assert answer("from city:Bern to city:Bern")[1]["city"] > 0.99  # the same value twice is no rival


def test_what_the_schema_does_not_allow_is_not_taken_and_what_must_be_there_is_where_it_is_likeliest() -> None:
    assert answer("city:Konstantinopel city:Rome")[0]["city"] == "Rome"
    assert "due" not in answer("city:Rome due:soon")[0]
    said, confidence, _ = answer("hello Rome")
    assert said["city"] in ("hello", "Rome")
    assert confidence["city"] < 0.01
    (found,) = tagger().answer(["Konstantinopel"])  # an answer that the schema refuses has no confidence
    assert (found.text, found.confidence) == ("{}", 0.0)


def test_labels_above_the_threshold_are_answered_with_the_probability_of_all_these_decisions() -> None:
    calm, rude = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-1))  # 0.98, 0.73
    said, confidence, _ = answer("city:Bern please")
    assert said["moods"] == ["calm"]
    assert confidence["moods"] == pytest.approx(calm * (1 - rude))
    said, confidence, _ = answer("city:Bern")
    assert "moods" not in said
    assert confidence["moods"] == pytest.approx(calm * (1 - rude))
    (both,) = tagger(0.7).answer(["city:Bern please"])
    assert json.loads(both.text)["moods"] == ["calm", "rude"]
    field = FIELDS[-1].model_copy(update={"must": True})
    assert chosen_labels(field, np.array([-4.0, 1.0]), 2.0).tolist() == [False, True]  # one there must be


def test_absence_has_a_confidence_too() -> None:
    _, confidence, _ = answer("to city:Bern")
    nothing = (1 - 1 / (math.exp(9) + 8)) ** 2
    assert confidence["due"] == pytest.approx(nothing)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder_folder)


def network(encoder: SentenceEncoder, max_tokens: int) -> TaggerNetwork:
    return TaggerNetwork(encoder, AnswerPlan(fields=FIELDS), max_tokens)


def test_places_are_those_of_the_characters(encoder: SentenceEncoder) -> None:
    text = "my refund, my card"
    found = network(encoder, 16).tokenize(text)
    words = [text[start:end].strip() for start, end in found.places if end > start]
    assert "".join(words) == text.replace(" ", "")
    assert len(found.ids) == len(found.places)


@pytest.mark.parametrize("n_words", [9, 17, 40])
def test_each_token_of_a_long_text_is_kept_once_and_in_order(encoder: SentenceEncoder, n_words: int) -> None:
    reader = network(encoder, 8)
    ids = reader.tokenize("card pin refund euro " * n_words).ids
    windows = list(reader.cut(ids))
    assert [token for own, kept in windows for token in own[kept]] == list(ids)
    assert max(len(own) for own, _ in windows) <= 8
    with torch.inference_mode():
        states, mask = reader.states([ids, ids[:5]])
        first, _ = encoder.hidden_states([windows[0][0]])
    assert mask.sum(1).tolist() == [len(ids), 5]
    assert states[0, :4] == pytest.approx(first[0, :4], abs=1e-5)
    with torch.inference_mode():  # a text of one window has the encoder's own states
        assert torch.equal(reader.states([ids[:5]])[0], encoder.hidden_states([ids[:5]])[0])
    reader._special = (1, 1)  # special tokens stand around every window and are kept once
    ids = (101, *range(30), 102)
    windows = list(reader.cut(ids))
    assert {(own[0], own[-1]) for own, _ in windows} == {(101, 102)}
    assert [token for own, kept in windows for token in own[kept]] == list(ids)


def log_probs(seed: int, n_tokens: int = 5, n_fields: int = 2) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).normal(size=(n_tokens, 1 + 2 * n_fields))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def is_allowed(path: tuple[int, ...]) -> bool:
    return all(
        label % 2 == 1 or label == 0 or before in (label, label - 1)
        for before, label in zip((0, *path), path, strict=False)
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_path_is_the_likeliest_of_all_that_are_allowed(seed: int) -> None:
    found = log_probs(seed)
    paths = filter(is_allowed, itertools.product(range(5), repeat=5))
    best = max(paths, key=lambda path: sum(found[t, label] for t, label in enumerate(path)))
    assert tuple(best_labels(found)) == best
