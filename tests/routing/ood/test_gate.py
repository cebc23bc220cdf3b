"""The out-of-domain gate: fitted on a toy task, it tells tickets from essays, and loads as it was saved."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.protocol import Request
from smallfirst.routing.ood.detector import fit_task_profile
from smallfirst.routing.ood.gate import ForeignTextClassifier, OodGate

THINGS = ("card", "refund", "pin", "transfer", "top-up", "fee")
WISHES = ("where is my {}", "the {} does not work", "i lost the {} yesterday", "why was a {} declined")
OTHER = (
    "write a poem about the sea for my mother",
    "explain how photosynthesis works to a child",
    "translate this paragraph into French please",
    "plan a trip through Portugal in spring",
    "what is the capital of Australia",
    "give me a recipe for lentil soup",
    "summarise the plot of Hamlet",
    "write a python function that sorts names",
)
UNSEEN_OTHER = (
    "write a short poem about autumn",
    "explain how a child learns a language",
    "give me a plan for a trip to Norway",
)


def dataset(texts: list[str] | tuple[str, ...], answer: str) -> Dataset:
    examples = (Example(messages=(Message(role="user", content=text),), answer=answer, shape="label") for text in texts)
    return Dataset(name="rows", examples=tuple(examples))


OWN = dataset([wish.format(thing) for wish in WISHES[:3] for thing in THINGS], "a")
SELECTION = dataset([WISHES[3].format(thing) for thing in THINGS], "a")


@pytest.fixture(scope="module")
def classifier() -> ForeignTextClassifier:
    return ForeignTextClassifier.fit(OWN, dataset(OTHER, ""), SELECTION)


def test_own_requests_score_below_the_threshold_and_foreign_ones_above(classifier: ForeignTextClassifier) -> None:
    assert max(classifier.ood_scores([example.text for example in OWN.examples])) < classifier.threshold
    assert min(classifier.ood_scores([*OTHER, *UNSEEN_OTHER])) > classifier.threshold


def test_the_threshold_keeps_the_requested_share_of_selection_rows() -> None:
    half_foreign = dataset([*(e.text for e in SELECTION.examples), *UNSEEN_OTHER, *OTHER[:3]], "a")
    classifier = ForeignTextClassifier.fit(OWN, dataset(OTHER, ""), half_foreign, keep=0.75)
    scores = classifier.ood_scores([example.text for example in half_foreign.examples])
    assert classifier.threshold == pytest.approx(float(np.quantile(scores, 0.75)))
    assert sum(value <= classifier.threshold for value in scores) == 9  # of 12


def test_without_selection_rows_the_threshold_is_one_half() -> None:
    assert ForeignTextClassifier.fit(OWN, dataset(OTHER, ""), dataset([], "a")).threshold == 0.5


def test_a_gate_loads_whichever_scorer_was_saved_and_scores_the_same(
    classifier: ForeignTextClassifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "domain")
    profile = fit_task_profile(OWN.subset("own", OWN.examples * 2), SELECTION.subset("more", SELECTION.examples * 4))
    profile.save(tmp_path / "signature")
    texts = (*(e.text for e in OWN.examples), *OTHER, *UNSEEN_OTHER, "card", "")

    async def score(gate: OodGate) -> list[float]:
        found = await asyncio.gather(*(gate.score(Request.ask(text)) for text in texts))
        assert min(min(one.cost_usd, one.latency_ms) for one in found) > 0
        await gate.aclose()
        return [one.value for one in found]

    for name, scorer in (("domain", classifier), ("signature", profile)):
        gate = OodGate.load(tmp_path / name)
        assert gate is not None
        assert gate.threshold == scorer.threshold
        scores = asyncio.run(score(gate))
        assert scores == scorer.ood_scores(texts)
        assert all(0 <= value <= 1 for value in scores)
    assert OodGate.load(tmp_path / "none") is None
