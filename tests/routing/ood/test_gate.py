"""The domain gate: fitted on a toy task, it tells tickets from essays, and is the same after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.protocol import Request
from smallfirst.routing.ood.detector import fit_task_profile
from smallfirst.routing.ood.gate import DomainGate, SignatureGate

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


def doubt(gate: DomainGate, text: str) -> float:
    return asyncio.run(gate.doubt(Request.ask(text))).value


@pytest.fixture(scope="module")
def gate() -> DomainGate:
    return DomainGate.fit(OWN, dataset(OTHER, ""), SELECTION)


def test_requests_of_the_task_raise_less_doubt_than_the_limit_and_others_more(gate: DomainGate) -> None:
    assert max(doubt(gate, example.text) for example in OWN.examples) < gate.limit
    assert min(doubt(gate, text) for text in OTHER) > gate.limit
    assert min(doubt(gate, text) for text in UNSEEN_OTHER) > gate.limit


def test_doubt_is_a_probability_and_says_what_it_took(gate: DomainGate) -> None:
    assert all(0 <= doubt(gate, text) <= 1 for text in (*OTHER, "", "card"))
    found = asyncio.run(gate.doubt(Request.ask("card")))
    assert found.cost_usd > 0
    assert found.latency_ms > 0


def test_the_limit_keeps_the_share_of_selection_rows_that_was_asked_for() -> None:
    half_foreign = dataset([*(e.text for e in SELECTION.examples), *UNSEEN_OTHER, *OTHER[:3]], "a")
    gate = DomainGate.fit(OWN, dataset(OTHER, ""), half_foreign, keep=0.75)
    doubts = [doubt(gate, example.text) for example in half_foreign.examples]
    assert gate.limit == pytest.approx(float(np.quantile(doubts, 0.75)))
    assert sum(value <= gate.limit for value in doubts) == 9  # of 12


def test_without_selection_rows_the_limit_is_even() -> None:
    assert DomainGate.fit(OWN, dataset(OTHER, ""), dataset([], "a")).limit == 0.5


def test_it_is_the_same_after_saving_and_loading(gate: DomainGate, tmp_path: Path) -> None:
    gate.save(tmp_path / "domain")
    again = DomainGate.load(tmp_path / "domain")
    assert again is not None
    assert again.limit == gate.limit
    for text in (*OTHER, *UNSEEN_OTHER, "where is my card", ""):
        assert doubt(again, text) == doubt(gate, text)


def test_where_nothing_was_saved_there_is_no_gate(tmp_path: Path) -> None:
    assert DomainGate.load(tmp_path / "domain") is None


def test_a_signature_stands_in_for_a_gate_where_no_foreign_requests_are_known(tmp_path: Path) -> None:
    more = SELECTION.subset("more", SELECTION.examples * 4)
    own = OWN.subset("own", OWN.examples * 2)
    signature = fit_task_profile(own, more)
    signature.save(tmp_path / "signature")
    gate = SignatureGate.load(tmp_path / "signature")
    assert gate is not None
    assert gate.limit == signature.limit
    texts = (*(e.text for e in own.examples), *OTHER)

    async def ask() -> list[float]:
        found = await asyncio.gather(*(gate.doubt(Request.ask(text)) for text in texts))
        assert min(doubt.cost_usd for doubt in found) > 0
        await gate.aclose()
        return [doubt.value for doubt in found]

    assert asyncio.run(ask()) == [look.doubt for look in signature.look(texts)]
    assert SignatureGate.load(tmp_path / "none") is None
