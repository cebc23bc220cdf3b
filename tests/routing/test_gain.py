"""The learned gain: finds what there is to find, says when there is nothing, and is the same after a restart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from smallfirst.routing.gain import GainModel

EASY, HARD = ("where is my card", "what is the fee", "is my pin active"), ("prove the lemma", "derive a bound on it")
FILLER = ("please", "now", "today", "again", "quickly", "for me", "thanks", "hello")


def asked(n: int, seed: int) -> tuple[list[str], list[bool]]:
    """Requests, nine in ten of the easy and one in ten of the hard ones answered well."""
    draw = np.random.default_rng(seed)
    easy = draw.random(n) < 0.5
    texts = [f"{draw.choice(EASY if one else HARD)} {draw.choice(FILLER)}" for one in easy]
    return texts, (draw.random(n) < np.where(easy, 0.9, 0.1)).tolist()


def small_alone(texts: Sequence[str], outcomes: Sequence[float]) -> GainModel:
    """Fitted on the small model's outcomes; the large one counts as always right."""
    return GainModel.fit(texts, {"small": outcomes})


@pytest.fixture(scope="module")
def learned() -> GainModel:
    return small_alone(*asked(200, 0))


def test_easy_requests_score_higher_and_scores_are_probabilities(learned: GainModel) -> None:
    texts, outcomes = asked(400, 1)
    scores = learned.probabilities(texts)["small"]
    easy = np.array([text.startswith(EASY) for text in texts])
    assert learned.fitted.models["small"].known
    assert scores[easy].mean() == pytest.approx(0.9, abs=0.07)
    assert scores[~easy].mean() == pytest.approx(0.1, abs=0.07)
    assert scores.mean() == pytest.approx(np.mean(outcomes), abs=0.07)
    odd = learned.probabilities(["", "§§§ 99999999999999999999", *texts])["small"]
    assert (odd >= 0).all()
    assert (odd <= 1).all()


def test_where_there_is_nothing_to_learn_it_says_so_and_gives_the_rate() -> None:
    unknown = 0
    for seed in range(4):
        texts, _ = asked(120, seed)
        outcomes = (np.random.default_rng(100 + seed).random(120) < 0.7).tolist()
        found = small_alone(texts, outcomes)
        if not found.fitted.models["small"].known:
            unknown += 1
            assert (found.probabilities(texts)["small"] == np.mean(outcomes)).all()
            assert "small: 5-fold" in found.fitted.why
            assert "nothing learned" in found.fitted.why
            assert found.threshold(0.5) == 1  # no share can be told from the others
    assert unknown >= 3  # one standard error: about one in six may be fooled


def test_too_few_rows_and_rows_all_alike_teach_nothing_and_are_stored_too(tmp_path: Path) -> None:
    assert small_alone(["a", "b"], [True, False]).score(["c"]).tolist() == [0.5]
    assert small_alone(asked(50, 0)[0], [True] * 50).score(["c"]).tolist() == [0.0]
    assert small_alone([], []).score(["c"]).tolist() == [0.5]
    small_alone(["a", "b"], [True, True]).save(tmp_path)
    again = GainModel.load(tmp_path)
    assert again.score(["c", "d"]).tolist() == [0.0, 0.0]


def test_it_is_the_same_after_saving_and_loading_and_holds_no_words(learned: GainModel, tmp_path: Path) -> None:
    learned.save(tmp_path / "gain")
    again = GainModel.load(tmp_path / "gain")
    texts, _ = asked(30, 2)
    assert (again.score(texts) == learned.score(texts)).all()
    files = sorted((tmp_path / "gain").iterdir())
    assert [file.name for file in files] == ["gain.json", "gain.safetensors"]
    assert not any(b"lemma" in file.read_bytes() for file in files)
    assert GainModel.load(tmp_path) is None


def test_the_gain_is_where_the_large_model_is_right_and_the_small_one_is_not() -> None:
    """Riddles are hard for both, proofs for the small model alone: what is hard is not what gains."""
    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 3, 400)
    texts = [
        f"{('where is my card', 'prove the lemma', 'guess the riddle')[kind]} {draw.choice(FILLER)}" for kind in kinds
    ]
    small = (draw.random(400) < np.array([0.9, 0.1, 0.1])[kinds]).tolist()
    large = (draw.random(400) < np.array([0.9, 0.9, 0.1])[kinds]).astype(float)
    large[::5] = np.nan  # not asked everywhere
    found = GainModel.fit(texts, {"small": small, "large": large.tolist()})
    card, proof, riddle = found.score(["where is my card now", "prove the lemma now", "guess the riddle now"])
    assert (card, proof, riddle) == pytest.approx((0.0, 0.8, 0.0), abs=0.12)
    assert found.fitted.models["large"].n_rows == 320
    assert (found.score(texts) > found.threshold(0.2)).mean() == pytest.approx(0.2, abs=0.05)
    assert found.threshold(0.1) > found.threshold(0.6)
