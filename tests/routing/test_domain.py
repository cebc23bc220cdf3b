"""The domain check: what a text has in common with a task's requests, and scores that keep the share they state."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from fixtures.rows import example
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from smallfirst.data.dataset import Dataset
from smallfirst.models.protocol import Request
from smallfirst.routing.domain import (
    KNOTS,
    MAX_CHARS,
    SCORES,
    ConformalScorer,
    OodGate,
    OodScore,
    ScoreFusion,
    TaskProfile,
    TextFeatures,
    _judge,
    _ranked_among_others,
    fit_task_profile,
    has_profile,
    own_limit,
)

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
    return Dataset(name="rows", examples=tuple(example(text, answer) for text in texts))


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
    assert gate.threshold == profile.threshold
    found, measured = asyncio.run(score(gate)), profile.measure(texts)
    assert [(one.value, one.features) for one in found] == [(one.ood_score, one.features) for one in measured]
    assert min(min(one.charge.usd or 0.0, one.latency_ms) for one in found) > 0
    least, most = (f([m.features[0] for m in part]) for f, part in ((min, measured[18:29]), (max, measured[:18])))
    assert least > most  # foreign texts are less like the task's own
    assert not has_profile(tmp_path / "none")


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
    told = [sum(p.ood_score > of.threshold for p in of.measure(nearly)) for of in (loose, strict)]
    assert told[0] < told[1]


def test_the_score_is_the_share_of_own_rows_that_are_more_ordinary() -> None:
    ranks = ConformalScorer.fit(np.array([4.0, 1.0, 3.0, 2.0]))
    # one less (1 + rows at least as large) / (4 + 1)
    assert ranks.ood_score(np.array([0.0, 1.0, 2.5, 4.0])) == pytest.approx([0.0, 0.0, 0.4, 0.6])


def test_the_score_still_grows_beyond_the_largest_own_one() -> None:
    ranks = ConformalScorer.fit(np.arange(100.0))
    just, far, very = ranks.neg_log_p_values(np.array([99.01, 120.0, 200.0]))
    assert just == pytest.approx(math.log(101), abs=0.01)
    # the upper tenth begins at 89 and exceeds it by 5 on average
    assert very - far == pytest.approx(80 / 5)
    assert ranks.ood_score(np.array([1e9]))[0] == 1.0


def test_a_limit_keeps_the_share_of_fresh_own_rows_that_it_names() -> None:
    draw, broken = np.random.default_rng(0), []
    for _ in range(300):
        ranks = ConformalScorer.fit(draw.exponential(size=99))
        broken.append((ranks.ood_score(draw.exponential(size=200)) > 0.895).mean())
    # in the mean over draws of the 99 rows exactly 1 in 10: of 100 equally likely places ten have p-values below 0.105
    assert np.mean(broken) == pytest.approx(0.1, abs=0.006)


@pytest.mark.parametrize(
    ("n", "mean", "broken"), [(30, 0.025, 0.4), (60, 0.02, 0.4), (149, 0.01, 0.1), (480, 0.012, 0.1)]
)
def test_at_most_the_declared_share_of_fresh_own_rows_is_beyond_the_limit(n: int, mean: float, broken: float) -> None:
    """At 95 % from 149 rows on, whatever the scores; of fewer in the mean."""
    draw, shares = np.random.default_rng(n), []
    for _ in range(100):
        own, fresh = (draw.exponential(size=(size, 4)) for size in (n, 2_000))
        ranks = ScoreFusion.fit(own)
        judged = _judge(ranks, _ranked_among_others(own), words=True)
        limit = own_limit([one.ood_score for one in judged], 0.02)
        shares.append(np.mean(ranks.fused.ood_score(ranks.neg_log_p_values(fresh).sum(axis=1)) > limit))
    assert np.mean(shares) <= mean
    assert np.mean(np.array(shares) > 0.02) <= broken
    assert max(shares) > 0  # some are refused


def test_many_rows_are_stored_as_knots_that_keep_no_less() -> None:
    scores = np.random.default_rng(1).normal(size=20_000)
    ranks = ConformalScorer.fit(scores)
    assert len(ranks.own) == KNOTS
    assert ranks.own[-1] == scores.max()
    assert (ranks.ood_score(scores) > 0.97).mean() == pytest.approx(0.03, abs=0.0015)
    assert (ranks.ood_score(scores) > 0.97).mean() <= 0.03


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=20))
def test_a_larger_score_never_ranks_lower(own: list[float], asked: list[float]) -> None:
    found = ConformalScorer.fit(np.array(own)).ood_score(np.sort(asked))
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_the_fused_score_is_valid_for_dependent_scores() -> None:
    """Combined p-values of dependent scores would be too small; ranking the sum anew mends that."""
    draw = np.random.default_rng(3)
    one, fresh = draw.normal(size=1000), draw.normal(size=2000)
    fusion = ScoreFusion.fit(np.column_stack([one, one, one]))
    found = fusion.neg_log_p_values(np.column_stack([fresh, fresh, fresh])).sum(axis=1)
    assert (fusion.fused.ood_score(found) > 0.9).mean() == pytest.approx(0.1, abs=0.03)


WORDS = ("where is my card", "where is my refund", "my card is lost", "why was the card declined", "refund my money")
ASKED = ("where is my money", "card card card", "write a poem about the sea", "", "?!", "東京", "a", "card " * 2000)
PIECES = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit(WORDS)


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return TextFeatures.fit(WORDS)


def test_distances_are_one_less_the_cosines_to_the_nearest_and_the_nearest_three(features: TextFeatures) -> None:
    asked, own = PIECES.transform(ASKED), PIECES.transform(WORDS)
    cosines = np.sort((asked @ own.T).toarray(), axis=1)
    found = features.scores(ASKED)
    assert found[:, 1] == pytest.approx(1 - cosines[:, -1], abs=1e-6)
    assert found[:, 2] == pytest.approx(1 - cosines[:, -3:].mean(axis=1), abs=1e-6)


def test_scores_do_not_depend_on_the_other_texts(features: TextFeatures) -> None:
    together = features.scores(ASKED)
    assert together.shape == (len(ASKED), len(SCORES))
    assert np.isfinite(together).all()
    for text, row in zip(ASKED, together, strict=True):
        assert features.scores([text])[0].tolist() == row.tolist()


def test_of_a_long_text_both_ends_are_compared(features: TextFeatures) -> None:
    long = "where is my card " * 200
    assert len(long) > MAX_CHARS
    begins, ends = features.scores(["poem " * 10 + long, long + " poem" * 10])
    assert begins[0] > 0
    assert ends[0] > 0
    half = MAX_CHARS // 2
    hidden = "x" * half + " poem sea " * 50 + "y" * half
    assert features.scores([hidden]).tolist() == features.scores(["x" * half + " " + "y" * half]).tolist()
