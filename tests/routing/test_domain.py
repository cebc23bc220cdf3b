"""The domain check: fitted on a toy task, it tells tickets from essays, and loads as it was saved."""

from __future__ import annotations

import asyncio
from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.protocol import Request
from smallfirst.routing.domain import KEEP_SHARE, OodGate, TaskProfile, fit_task_profile, has_profile
from smallfirst.routing.router import OodScore

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
ODD = ("zebra", "quartz", "mango", "violin", "tuba", "cello", "harp", "flute", "drum", "gong", "lute", "oboe")
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


def test_a_gate_measures_as_the_profile_that_was_saved(tmp_path: Path) -> None:
    profile = fit_task_profile(OWN.subset("own", OWN.examples * 2), SELECTION.subset("more", SELECTION.examples * 4))
    profile.save(tmp_path / "signature")
    texts = (*(e.text for e in OWN.examples), *OTHER, *UNSEEN_OTHER, "card", "")

    async def score(gate: OodGate) -> list[OodScore]:
        found = await asyncio.gather(*(gate.score(Request.ask(text)) for text in texts))
        await gate.aclose()
        return found

    gate = OodGate(TaskProfile.load(tmp_path / "signature"))
    assert gate is not None
    assert gate.threshold == profile.threshold
    found, measured = asyncio.run(score(gate)), profile.measure(texts)
    assert [(one.value, one.features) for one in found] == [(one.ood_score, one.features) for one in measured]
    assert [one.ood_score for one in measured] == profile.word_scores(texts).tolist()
    assert min(min(one.cost_usd, one.latency_ms) for one in found) > 0
    least, most = (f([m.features[0] for m in part]) for f, part in ((min, measured[18:29]), (max, measured[:18])))
    assert least > most  # foreign texts are less like the task's own
    assert not has_profile(tmp_path / "none")


def test_rows_that_the_profile_measured_as_it_was_fitted_are_not_measured_again() -> None:
    profile = fit_task_profile(OWN.subset("own", OWN.examples * 2), SELECTION.subset("more", SELECTION.examples * 4))
    assert profile.measure([]) == []


def test_in_folds_a_row_is_measured_by_a_profile_that_does_not_know_it(tmp_path: Path) -> None:
    rows = dataset([wish.format(f"{thing} {n}") for wish in WISHES for thing in THINGS for n in range(3)], "a")
    train, selection = rows.subset("train", rows.examples[:60]), rows.subset("selection", rows.examples[60:])
    profile = fit_task_profile(train, selection, n_folds=5)
    assert set(profile.unseen) == {example.key for example in rows.examples}
    unseen = [one.features[0] for one in profile.measure_rows(rows)]
    known = [one.features[0] for one in profile.measure([example.text for example in rows.examples])]
    assert sum(unseen) > sum(known)  # a profile that knows a row finds it ordinary
    new = rows.subset("new", (rows.examples[0], *dataset(UNSEEN_OTHER, "a").examples))
    measured = profile.measure_rows(new)
    assert measured[0] == profile.unseen[rows.examples[0].key]
    assert measured[1:] == profile.measure(list(UNSEEN_OTHER))
    profile.save(tmp_path / "signature")
    assert has_profile(tmp_path / "signature")


def test_by_selection_rows_odd_training_rows_do_not_loosen_the_limit() -> None:
    odd = dataset([f"{thing} {does}" for thing in ODD for does in ("jumps", "swims", "flies")], "a")
    nearly = ("the parcel does not work", "where is my dog", "i lost the keys yesterday")
    train = OWN.subset("train", (*OWN.examples, *odd.examples))
    selection = dataset([wish.format(f"{thing} {n}") for wish in WISHES for thing in THINGS for n in range(2)], "a")
    loose, strict = (fit_task_profile(train, selection, n_folds=5, by_selection=by) for by in (False, True))
    told = [sum(profile.word_scores(nearly) > KEEP_SHARE) for profile in (loose, strict)]
    assert told[0] < told[1]
