"""The search over cascades and several limits: by hand, as laws, by simulation and against MAPIE."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from fixtures.certificates import cascade
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.stats.sample_size import min_rows_without_error, rows_for_upper_bound
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, is_shown, measure_risk
from smallfirst.routing.certificate.threshold_search import (
    chance_to_show,
    search_cascade,
    search_threshold,
    threshold_paths,
)


def drawn(seed: int, n: int, *, stages: int = 1) -> CascadeData:
    """Stages with informative confidences: their most confident share k is wrong 0.4 k^2 / 3 of the time."""
    draw = np.random.default_rng(seed)
    confidence = draw.random((stages, n))
    return cascade(confidence, draw.random((stages, n)) > 0.4 * (1 - confidence) ** 2)


def test_the_fewest_rows_without_an_error_agree_with_the_scan() -> None:
    for alpha in (0.01, 0.05, 0.2):
        for level in (0.05, 0.025, 0.05 / 77):
            assert min_rows_without_error(alpha, level) == rows_for_upper_bound(0.0, alpha, confidence=1 - level)


def test_one_stage_and_one_limit_equal_the_search_of_one_threshold() -> None:
    for seed in range(20):
        rows, guarantee = drawn(seed, 300), Guarantee(max_error=0.1)
        old = search_threshold(rows.confidence[0].tolist(), rows.right[0].tolist(), guarantee)
        found = search_cascade(rows, guarantee)
        assert (found.thresholds, found.level) == ((old.threshold,), pytest.approx(0.05))
        assert rows.outcome(found.thresholds).n_accepted == old.n_accepted


def test_paths_go_from_strict_to_loose_and_do_not_look_at_answers() -> None:
    for path in threshold_paths(np.random.default_rng(1).random((2, 57))):
        assert all(a >= b for one, two in itertools.pairwise(path) for a, b in zip(one, two, strict=True))
        assert path[-1][-1] == 0.0  # everything is kept in the end
    closed, together, half = threshold_paths(np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]))
    assert closed == [(NEVER_ACCEPT, t) for t in (NEVER_ACCEPT, 0.8, 0.7, 0.6, 0.0)]
    assert together[1:] == [(0.4, 0.8), (0.3, 0.7), (0.2, 0.6), (0.0, 0.0)]
    assert (0.4, 0.6) in half
    assert (0.3, 0.0) in half


def test_an_outcome_pays_for_every_draft_on_the_way() -> None:
    rows = cascade([[0.9, 0.1, 0.1], [0.0, 0.9, 0.1]], [[True, True, True], [False, False, False]])
    outcome = rows.outcome((0.5, 0.5))
    assert outcome.stage.tolist() == [0, 1, 2]
    assert outcome.right.tolist() == [True, False, True]
    assert outcome.select(rows.cost_usd.cumsum(axis=0)).tolist() == pytest.approx([0.001, 0.002, 0.102])


def test_the_risks_of_an_outcome_by_hand() -> None:
    # Kept: two right, one wrong (large right there). Sent on: large right, large wrong where small is right.
    rows = cascade(
        [0.9, 0.8, 0.7, 0.2, 0.1], [True, True, False, False, True], large_right=np.array([1, 1, 1, 1, 0], bool)
    )
    outcome = rows.outcome((0.5,))
    seen = {name: measure_risk(name, outcome, 0.5, 0.05) for name in ("error", "accuracy_loss")}
    assert (seen["error"].value, seen["error"].n) == (pytest.approx(1 / 3), 3)
    assert (seen["accuracy_loss"].value, seen["accuracy_loss"].n) == (pytest.approx(1 / 5), 5)
    assert outcome.mean_cost_usd == pytest.approx((3 * 0.001 + 2 * 0.101) / 5)


def test_a_row_that_the_large_model_was_not_asked_costs_the_mean_and_tells_nothing_of_the_accuracy_loss() -> None:
    asked = np.array([True, True, False])
    cost = np.array([[0.001] * 3, [0.1, 0.3, 0.2]])  # the third is the mean of the two
    outcome = cascade([0.1, 0.2, 0.3], [True] * 3, asked=asked, cost_usd=cost).outcome((0.5,))
    assert outcome.mean_cost_usd == pytest.approx((0.101 + 0.301 + 0.201) / 3)
    assert measure_risk("accuracy_loss", outcome, 0.1, 0.05).n == 2


def with_large(seed: int, n: int, error: float = 0.05, *, stages: int = 1) -> CascadeData:
    """`drawn` beside a large model that is wrong this often."""
    large = np.random.default_rng(seed + 1).random(n) >= error
    return dataclasses.replace(drawn(seed, n, stages=stages), large_right=large)


def test_two_limits_share_the_level_and_both_are_kept() -> None:
    rows = with_large(3, 1200)
    guarantee = Guarantee(max_error=0.1, max_accuracy_loss=0.1)
    found = search_cascade(rows, guarantee)
    assert found.issued
    assert found.level == pytest.approx(0.025)
    outcome = rows.outcome(found.thresholds)
    assert all(is_shown(name, outcome, limit, 0.025) for name, limit in guarantee.limits.items())
    # Loosest is cheapest, as the large model is the dearer one: the next step would break one of the limits.
    assert outcome.n_accepted / rows.n == min(found.shares[name][1] for name in guarantee.limits)


def test_limits_that_exclude_each_other_are_refused_with_where_each_is_shown() -> None:
    # Small is wrong where it is sure and large is not: the accuracy loss is shown where nearly nothing is kept.
    rows = cascade(np.linspace(1, 0.5, 1200), np.arange(1200) >= 40)
    found = search_cascade(rows, Guarantee(max_error=0.1, max_accuracy_loss=0.02))
    assert not found.issued
    assert found.shares["accuracy_loss"][1] < found.shares["error"][0]


def test_of_what_is_shown_the_cheapest_is_taken() -> None:
    draw = np.random.default_rng(2)
    confidence = draw.random((2, 1500))
    rows = cascade(confidence, draw.random((2, 1500)) < 0.99)
    found = search_cascade(rows, Guarantee(max_error=0.05))
    # Both stages may answer everything, so the first one does: half the price of asking both.
    assert found.thresholds[0] == 0.0
    assert rows.outcome(found.thresholds).mean_cost_usd == pytest.approx(0.001)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.sampled_from([(0.04, 0.08), (0.08, 0.1), (0.1, 0.3)]))
def test_a_looser_guarantee_never_costs_more(seed: int, stages: int, alphas: tuple[float, float]) -> None:
    rows = drawn(seed, 400, stages=stages)
    strict, loose = (search_cascade(rows, Guarantee(max_error=a, max_accuracy_loss=0.5)) for a in alphas)
    assert loose.issued or not strict.issued
    cost = [rows.outcome(found.thresholds).mean_cost_usd for found in (strict, loose)]
    assert cost[1] <= cost[0] + 1e-12


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    rows = drawn(seed, 300, stages=2)
    guarantee = Guarantee(max_error=0.2, max_accuracy_loss=0.2)
    mixed = rows.take(np.random.default_rng(seed).permutation(300))
    assert search_cascade(rows, guarantee).thresholds == search_cascade(mixed, guarantee).thresholds


def test_several_limits_are_broken_at_most_as_often_as_stated() -> None:
    population = with_large(0, 10_000, stages=2)
    draw, sets, broken, issued = np.random.default_rng(5), 50, 0, 0
    guarantee = Guarantee(max_error=0.1, max_accuracy_loss=0.1)
    for _ in range(sets):
        found = search_cascade(population.take(draw.integers(0, population.n, 600)), guarantee)
        outcome = population.outcome(found.thresholds)
        issued += found.issued
        broken += found.issued and any(measure_risk(k, outcome, v, 0.05).value > v for k, v in guarantee.limits.items())
    assert issued > 0.5 * sets
    assert broken / sets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)


def test_without_a_useful_confidence_it_refuses() -> None:
    draw, issued = np.random.default_rng(6), 0
    for _ in range(60):
        rows = cascade(draw.random((2, 400)), draw.random((2, 400)) < 0.88)
        issued += search_cascade(rows, Guarantee(max_error=0.1)).issued
    assert issued <= 3 + 3 * math.sqrt(3 * 0.95)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mapie_finds_the_same_thresholds_or_stricter_ones() -> None:
    mapie = pytest.importorskip("mapie.risk_control")
    for seed in range(6):
        rows = drawn(seed, 500)
        confidence, right = rows.confidence[0], rows.right[0]
        mine = search_threshold(confidence.tolist(), right.tolist(), Guarantee(max_error=0.1))
        half = np.sort(confidence)[::-1][(rows.n + 1) // 2 - 1 :]  # every threshold of our sequence
        controller = mapie.BinaryClassificationController(
            lambda x: np.column_stack([1 - x, x]),
            mapie.precision,
            target_level=0.9,
            confidence_level=0.95,
            list_predict_params=half,
            fwer_method="fixed_sequence",
        ).calibrate(confidence, right.astype(int))
        theirs = controller.best_predict_param
        assert theirs is not None
        # Its p-values (Hoeffding and Bentkus) are never below the exact ones, so it keeps at most as much.
        assert mine.threshold <= theirs
        n_accepted = int((confidence >= theirs).sum())
        assert n_accepted >= 0.8 * mine.n_accepted


@pytest.mark.parametrize("stages", [1, 2])
def test_selection_rows_choose_where_the_search_begins(stages: int) -> None:
    draw = np.random.default_rng(8)

    def rows(n: int) -> CascadeData:  # a sixth of the answers is right, the rest half of the time
        confidence = draw.random((1, n)).repeat(stages, axis=0)
        return cascade(confidence, draw.random((1, n)).repeat(stages, axis=0) < np.where(confidence > 0.83, 1.0, 0.5))

    seldom = rows(240)  # 40 rows are right: enough for 10 % at a whole level, too few at a part of it
    guarantee = Guarantee(max_error=0.1, confidence=0.95 if stages == 1 else 0.85)
    assert not search_cascade(seldom, guarantee).issued
    found = search_cascade(seldom, guarantee, selection=rows(400))
    assert found.issued
    assert seldom.right[-1][seldom.outcome(found.thresholds).accepted].mean() > 0.9


def test_several_starts_are_broken_at_most_as_often_as_stated() -> None:
    population, draw, broken, issued = drawn(1, 20_000), np.random.default_rng(9), 0, 0
    guarantee = Guarantee(max_error=0.1)
    for _ in range(300):
        found = search_cascade(population.take(draw.integers(0, population.n, 400)), guarantee)
        issued += found.issued
        broken += found.issued and measure_risk("error", population.outcome(found.thresholds), 0.1, 0.05).value > 0.1
    assert issued > 200
    assert broken / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_few_rows_are_told_to_show_little_before_they_are_asked() -> None:
    """60 rows can show 5 % without an error alone; a model that is wrong on a twentieth is not likely to have none."""
    scores = np.linspace(1, 0, 400)
    right = np.arange(400) % 20 != 7
    few, many = (chance_to_show(scores, right, n, 0.10, 0.04) for n in (40, 800))
    assert few < 0.2
    assert many > 0.8
    assert chance_to_show(scores[:0], right[:0], 40, 0.10, 0.04) == 1  # nothing is known
    assert chance_to_show(scores, np.ones(400, dtype=bool), 40, 0.05, 0.04) == 0  # not even without an error
