"""Out-of-domain scores from scores of any scale: a threshold keeps the share of own requests that it states."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.routing.domain import KNOTS, ConformalScorer, ScoreFusion


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


def test_few_rows_are_enough_to_reject_very_foreign_texts() -> None:
    ranks = ConformalScorer.fit(np.arange(10.0))
    assert ranks.ood_score(np.array([9.5]))[0] < 0.97 < ranks.ood_score(np.array([20.0]))[0]


def test_own_rows_that_are_all_alike_accept_their_like_and_nothing_else() -> None:
    ranks = ConformalScorer.fit(np.zeros(50))
    assert ranks.ood_score(np.array([0.0, 1.0])) == pytest.approx([0.0, 1.0])


def test_a_limit_keeps_the_share_of_fresh_own_rows_that_it_names() -> None:
    draw, broken = np.random.default_rng(0), []
    for _ in range(300):
        ranks = ConformalScorer.fit(draw.exponential(size=99))
        broken.append((ranks.ood_score(draw.exponential(size=200)) > 0.895).mean())
    # in the mean over draws of the 99 rows exactly 1 in 10: of 100 equally likely places ten have p-values below 0.105
    assert np.mean(broken) == pytest.approx(0.1, abs=0.006)


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


def test_scores_count_alike_and_their_scale_does_not_matter() -> None:
    draw = np.random.default_rng(2)
    own, asked = draw.normal(size=(200, 2)), draw.normal(size=(50, 2))
    plain, scaled = ScoreFusion.fit(own), ScoreFusion.fit(own * [1, 1000] + [0, 7])
    assert plain.ood_score(asked) == pytest.approx(scaled.ood_score(asked * [1, 1000] + [0, 7]))
    assert plain.nonconformity(asked) == pytest.approx(
        sum(r.neg_log_p_values(c) for r, c in zip(plain.ranks, asked.T, strict=True))
    )


def test_the_fused_score_is_valid_for_dependent_scores() -> None:
    """Combined p-values of dependent scores would be too small; ranking the sum anew mends that."""
    draw = np.random.default_rng(3)
    one, fresh = draw.normal(size=1000), draw.normal(size=2000)
    fusion = ScoreFusion.fit(np.column_stack([one, one, one]))
    assert (fusion.ood_score(np.column_stack([fresh, fresh, fresh])) > 0.9).mean() == pytest.approx(0.1, abs=0.03)


def test_a_fusion_is_the_same_from_its_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(6)
    fusion = ScoreFusion.fit(draw.normal(size=(30, 3)))
    asked = draw.normal(size=(10, 3))
    again = ScoreFusion.load(fusion.save(tmp_path / "fusion.json"))
    assert again.ood_score(asked).tolist() == fusion.ood_score(asked).tolist()


def test_ranks_of_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ranks.json").write_text('{"own": []}')
    with pytest.raises(ConfigError, match="own"):
        ConformalScorer.load(tmp_path / "ranks.json")
