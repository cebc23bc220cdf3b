"""A promoted model in Python: what it answers, and the ways to name it."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from fixtures.deployment import NAME
from fixtures.endpoints import PASSED
from fixtures.server import WholeModel

import smallfirst as sf
from smallfirst.base.errors import ConfigError
from smallfirst.data.dataset import Dataset
from smallfirst.deployment.predictor import Predictor
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Completion, LabelScores, Request
from smallfirst.path.project.run_folder import RunFolder

KNOWN = {"a card": (0.9, 0.1), "a fee": (0.2, 0.8)}


class Labels(WholeModel):
    """A model that knows two texts."""

    name = "by hand"
    capabilities = frozenset({Capability.LABEL_PROBABILITIES})

    async def complete(self, request: Request) -> Completion:
        cards, fees = KNOWN[request.text]
        text = "cards" if cards > fees else "fees"
        return Completion(text=text, answered_by=self.name, latency_ms=1, cost_usd=0, confidence=max(cards, fees))

    async def probabilities(self, texts: list[str], bill=None) -> list[LabelScores]:
        return [LabelScores(("cards", "fees"), list(KNOWN[text]), 1) for text in texts]

    async def aclose(self) -> None:
        self.name = "closed"


class Writer(Labels):
    """A model that writes an invoice's total as JSON."""

    capabilities = frozenset()

    async def complete(self, request: Request) -> Completion:
        text = {"total 3": '{"total": "3"}'}.get(request.text, "no idea")
        return Completion(text=text, answered_by=self.name, latency_ms=1, cost_usd=0)


@pytest.fixture
def model() -> Predictor:
    return Predictor(Labels(), sf.Classify(name="desk", labels=("cards", "fees")))


def test_one_text_gives_one_answer_and_several_give_a_list(model: Predictor) -> None:
    assert model.predict("a fee") == "fees"
    assert model.predict(["a fee", "a card"]) == ["fees", "cards"]
    assert model.predict(text for text in KNOWN) == ["cards", "fees"]
    assert model.predict([]) == []
    assert [found.confidence for found in model.complete("a fee")] == [0.8]


def test_probabilities_have_a_row_for_each_text_and_a_column_for_each_class(model: Predictor) -> None:
    assert model.classes_ == ["cards", "fees"]
    found = model.predict_proba(["a fee", "a card"])
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [[0.2, 0.8], [0.9, 0.1]]
    assert model.predict_proba("a fee").tolist() == [0.2, 0.8]
    assert model.predict_proba([]).shape == (0, 2)


def test_score_is_the_share_of_right_answers(model: Predictor) -> None:
    assert model.score(["a card", "a fee"], ["cards", "cards"]) == 0.5
    with pytest.raises(ConfigError, match="1 texts and 2 answers"):
        model.score(["a card"], ["cards", "fees"])


async def test_it_works_in_a_running_event_loop(model: Predictor) -> None:
    assert (model.predict("a fee"), model.predict_proba("a fee")[1]) == ("fees", 0.8)


def test_json_answers_are_values_and_what_cannot_be_read_is_none() -> None:
    task = sf.Extract(name="bills", json_schema={"type": "object", "properties": {"total": {"type": "string"}}})
    model = Predictor(Writer(), task)
    assert model.predict(["total 3", "hello"]) == [{"total": "3"}, None]
    assert model.score(["total 3", "hello"], [{"total": "3"}, {"total": "4"}]) == 0.5
    with pytest.raises(AttributeError, match="no classes_"):
        _ = model.classes_
    with pytest.raises(ConfigError, match="writes its answers"):
        model.predict_proba("total 3")


def test_a_model_that_went_live_behind_its_router_says_so(
    tmp_path: Path, toy_rows: Dataset, toy_task: sf.Classify
) -> None:
    LinearClassifier.fit("words", toy_rows, toy_task).save(tmp_path, Manifest(kind="words", task=toy_task, base=""))
    verdict = PASSED.model_copy(update={"plan": "small first"})

    def version(tags: dict[str, str]) -> sf.ModelVersion:
        values = {"name": "main.ml.toy", "version": 3, "aliases": (), "folder": tmp_path, "run_id": "r", "tags": tags}
        return sf.ModelVersion(**values, created_at=datetime(2026, 1, 2, tzinfo=UTC))

    with sf.load(version({"verdict": verdict.model_dump_json()})) as routed:
        assert routed.plan == "small first"
        assert repr(routed) == "Predictor('main.ml.toy/3', classify, 4 classes, small first: without its Router)"
    with sf.load(version({"verdict": PASSED.model_dump_json()})) as alone:
        assert (alone.plan, repr(alone)) == ("small alone", "Predictor('main.ml.toy/3', classify, 4 classes)")
    with sf.load(version({})) as unjudged:
        assert unjudged.plan == ""


def test_a_small_first_task_is_loaded_with_its_router(desk) -> None:
    passed = PASSED.model_copy(update={"plan": "small first"})
    run_folder = RunFolder.new("toy")
    (run_folder.path / "run.json").write_text("{}", encoding="utf-8")
    version = sf.register(desk.folder(0), passed, name=NAME, run_id=None, tags={"run": run_folder.path.name}).version
    desk.certify(version)
    sf.promote(NAME, version)
    with sf.load(desk.path) as routed:
        assert repr(routed) == "Predictor('toy/1', classify, 4 classes, small first: with its Router)"
        for _ in range(2):
            (found,) = routed.complete("tell me more about your card")
            assert (found.route.stage, found.route.certified) == ("small", True)
        assert routed.predict("tell me more about your card") == found.text
        assert routed.predict_proba("tell me more about your card").shape == (4,)
