"""Every interval against a reference implementation, by hand, or by its coverage."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy_stats
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from smallfirst.base.stats.intervals import (
    Estimate,
    betting_p_value,
    bootstrap_interval,
    bootstrap_share,
    clopper_pearson,
    is_mean_below,
    mean_interval,
    paired_difference,
    paired_score_interval,
    quantile_interval,
    ratio_interval,
    trinomial_p_value,
    trinomial_upper_bound,
    upper_bound,
    wilson,
)

COUNTS = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
CALM = settings(max_examples=50, deadline=None)
"""A busy machine is no reason to fail."""
LEVELS = st.sampled_from([0.8, 0.95, 0.975, 0.99])


@CALM
@given(COUNTS, LEVELS)
def test_wilson_agrees_with_statsmodels(counts: tuple[int, int], level: float) -> None:
    found = wilson(*counts, confidence=level)
    low, high = proportion_confint(*counts, alpha=1 - level, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert (found.value, found.n) == (counts[0] / counts[1], counts[1])
    assert 0 <= found.low <= found.value <= found.high <= 1


@CALM
@given(COUNTS, LEVELS)
def test_clopper_pearson_agrees_with_statsmodels(counts: tuple[int, int], level: float) -> None:
    found = clopper_pearson(*counts, confidence=level)
    low, high = proportion_confint(*counts, alpha=1 - level, method="beta")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert (found.value, found.n) == (counts[0] / counts[1], counts[1])


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_the_end_at_nothing_and_at_everything_is_exact(interval: Callable[[int, int], Estimate]) -> None:
    for n in range(1, 300):
        none, every = interval(0, n), interval(n, n)
        assert (none.low, every.high) == (0.0, 1.0)
        assert 0 < none.high < 1 or n == 1
        assert every.low == pytest.approx(1 - none.high)


@CALM
@given(COUNTS, LEVELS)
def test_the_upper_bound_agrees_with_the_upper_end_of_a_two_sided_interval_at_twice_the_alpha(
    counts: tuple[int, int], level: float
) -> None:
    reference = proportion_confint(*counts, alpha=2 * (1 - level), method="beta")[1]
    assert upper_bound(*counts, confidence=level) == pytest.approx(reference, abs=1e-9)


def test_nothing_measured_shows_nothing() -> None:
    assert wilson(0, 0) == Estimate(value=0.0, low=0.0, high=1.0, n=0)
    assert clopper_pearson(0, 0) == wilson(0, 0)
    assert upper_bound(0, 0) == 1.0
    assert paired_difference([], []) == Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    assert bootstrap_share(lambda rows: 0.5, 0) == Estimate(value=0.0, low=0.0, high=1.0, n=0)


@CALM
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_a_paired_difference_changes_sign_with_the_order(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert -1 <= there.low <= there.value <= there.high <= 1


@pytest.mark.parametrize("shares", [(0.05, 0.02), (0.2, 0.2), (0.3, 0.05)])
def test_a_paired_difference_covers_the_truth_as_often_as_stated(shares: tuple[float, float]) -> None:
    draw, n, sets = np.random.default_rng(0), 120, 1500
    only_first, only_second = shares
    kinds = draw.choice(3, p=[only_first, only_second, 1 - only_first - only_second], size=(sets, n))
    covered = 0
    for row in kinds:
        found = paired_difference(row != 1, row != 0)
        covered += found.low <= only_first - only_second <= found.high
    # Four standard deviations of 1,500 draws at 95 % are 2.3 %.
    assert covered / sets >= 0.95 - 0.023


def test_a_paired_difference_of_scores_by_hand() -> None:
    found = paired_difference([0.9, 0.5, 1.0], [0.4, 0.5, 0.8])
    # Differences 0.5, 0 and 0.2; with two more pairs that bring a square of 1: (0.25 + 0.04 + 1) / 5 - (0.7 / 5)**2
    half = 1.959964 * math.sqrt((1.29 / 5 - 0.14**2) / 5)
    assert (found.value, found.n) == (pytest.approx(0.7 / 3), 3)
    assert (found.low, found.high) == pytest.approx((0.14 - half, 0.14 + half), abs=1e-6)


def test_rows_that_all_differ_alike_keep_the_value_inside_the_interval() -> None:
    found = paired_difference([1.0] * 5, [0.0] * 5)
    assert found.value == found.high == 1.0
    assert found.low < 0.8
    # A narrow interval about the centre, which the two added pairs pull towards 0, would leave the value out.
    found = paired_difference([0.5] * 50, [0.0] * 50, confidence=0.2)
    assert found.low < found.value == found.high == 0.5


def test_scores_that_are_no_pairs_of_shares_are_refused() -> None:
    for first, second, said in (([1, 0], [1], "differ in number: 2 and 1"), ([1.5], [0.0], "differ by at most 1")):
        with pytest.raises(ValueError, match=said):
            paired_difference(first, second)


def test_the_bias_corrected_interval_is_the_percentile_one_moved_towards_the_value() -> None:
    values = np.linspace(0.4, 0.6, 1001)
    # In the middle of the resamples there is nothing to correct; n is large, so that Wilson's interval is inside.
    found = bootstrap_interval(0.5, values, n=100_000)
    assert (found.low, found.high) == pytest.approx((0.405, 0.595), abs=1e-6)
    # 84.13 % of the resamples lie below 0.56827, one standard deviation: both ends move up by two of them, from the
    # quantiles at ±1.96 to those at 0.04 and 3.96.
    found = bootstrap_interval(0.568269, values, n=100_000)
    expected = 0.4 + 0.2 * scipy_stats.norm.cdf([2 - 1.959964, 2 + 1.959964])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-3)


@pytest.mark.parametrize(("n", "q"), [(100, 0.95), (72, 0.95), (300, 0.95), (40, 0.5)])
def test_a_quantile_misses_as_seldom_as_the_binomial_says(n: int, q: float) -> None:
    found = quantile_interval(np.arange(1, n + 1), q)
    below = scipy_stats.binom(n, q)  # how many of n values lie below the quantile; value k is the k-th smallest
    assert below.cdf(found.low - 1) <= 0.025 < below.cdf(found.low)
    assert below.sf(found.high - 1) <= 0.025 < below.sf(found.high - 2)


def test_so_few_values_show_no_end_of_a_quantile() -> None:
    assert quantile_interval(range(71), 0.95).high == math.inf
    assert quantile_interval([], 0.5) == Estimate(value=0, low=-math.inf, high=math.inf, n=0)


def test_a_skewed_mean_is_covered_where_students_interval_is_too_low() -> None:
    draw, missed, students, draws = np.random.default_rng(11), 0, 0, 200
    for _ in range(draws):  # one request in fifty costs twenty times as much
        values = np.where(draw.random(200) < 0.02, 20.0, 1.0) * draw.uniform(0.9, 1.1, 200)
        found = mean_interval(values)
        missed += found.high < 1.38
        students += values.mean() + 1.972 * values.std(ddof=1) / math.sqrt(200) < 1.38
    assert missed / draws <= 0.04 < students / draws


def test_means_without_spread_or_without_values() -> None:
    assert mean_interval([0.1] * 7) == Estimate(value=0.1, low=0.1, high=0.1, n=7)
    assert mean_interval([2.0]) == Estimate(value=2, low=-math.inf, high=math.inf, n=1)
    assert mean_interval([]).n == 0


def test_a_ratio_over_units_covers_the_mean_of_a_population_drawn_with_unequal_chances() -> None:
    draw, inside, plain = np.random.default_rng(3), 0, 0
    for _ in range(400):
        costs = draw.gamma(2.0, 0.5, 300)
        chance = np.clip(0.05 + 0.2 * costs, 0, 1)  # dear ones are drawn more often
        drawn = draw.random(300) < chance
        weights = 1 / chance[drawn]
        found = ratio_interval(costs[drawn] * weights, weights)
        inside += found.low <= costs.mean() <= found.high
        plain += abs(costs[drawn].mean() - costs.mean()) < found.high - found.value
    assert plain / 400 < 0.6 < 0.91 <= inside / 400 <= 0.99


def test_a_ratio_of_sums_with_the_linearized_variance_by_hand() -> None:
    found = ratio_interval([3.0, 6.0, 0.0], [10, 10, 0])  # an empty day says nothing
    spread = math.sqrt(2 * (1.5**2 + 1.5**2)) / 20
    assert (found.value, found.n) == (0.45, 20)
    assert found.high - 0.45 == pytest.approx(scipy_stats.t.ppf(0.975, 1) * spread)
    assert math.isinf(ratio_interval([3.0], [10]).high)
    assert math.isinf(ratio_interval([], []).high)


LOSSES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def bits(ones: int, n: int) -> np.ndarray:
    return np.array([1.0] * ones + [0.0] * (n - ones))


def test_one_row_by_hand() -> None:
    # Against «mean >= 1/2» a loss of 0 multiplies by 1 + b, a loss of 1 by 1 - b. Bets b: 32 of mean 1/2 and weight
    # 3/4 together, and 0.999 of weight 1/4. Wealth 3/4 * 1.5 + 1/4 * 1.999 = 1.62475 (and 0.37525 after a loss).
    assert betting_p_value([0.0], 0.5) == pytest.approx(1 / 1.62475)
    assert betting_p_value([1.0], 0.5) == 1.0
    # A row at the mean itself changes nothing.
    assert betting_p_value([0.5, 0.0], 0.5) == pytest.approx(1 / 1.62475)


@settings(max_examples=60, deadline=None)
@given(LOSSES, st.randoms(use_true_random=False), st.floats(0.05, 0.95))
def test_the_order_of_rows_and_their_unit_do_not_matter(losses: list[float], random: object, mean: float) -> None:
    p_value = betting_p_value(losses, mean)
    random.shuffle(losses)  # type: ignore[attr-defined]
    assert betting_p_value(losses, mean) == pytest.approx(p_value)
    moved = [2 * loss - 1 for loss in losses]
    assert betting_p_value(moved, 2 * mean - 1, low=-1, high=1) == pytest.approx(p_value, rel=1e-6)


@pytest.mark.parametrize(
    ("draw", "mean", "low"),
    [
        (lambda g, n: (g.random(n) < 0.04).astype(float), 0.04, 0.0),
        (lambda g, n: g.beta(0.5, 4.5, n), 0.1, 0.0),
        (lambda g, n: g.choice([-1.0, 0.0, 1.0], n, p=[0.05, 0.88, 0.07]), 0.02, -1.0),
    ],
)
def test_the_bounds_cover_the_mean_as_often_as_they_say(draw, mean: float, low: float) -> None:
    generator, sets, missed = np.random.default_rng(3), 600, 0
    for _ in range(sets):
        missed += betting_p_value(draw(generator, 120), mean, low=low) <= 0.05
    # A p-value of at most 0.05 at the true mean is a bound that misses it.
    assert missed / sets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)


def score_statistic(only_first: int, only_second: int, n: int, difference: float) -> float:
    """Tango's statistic, with the nuisance share found by maximising the likelihood instead of by his formula."""

    def against(only_second_share: float) -> float:
        shares = (only_second_share + difference, only_second_share, 1 - 2 * only_second_share - difference)
        counts = (only_first, only_second, n - only_first - only_second)
        return -sum(c * math.log(max(s, 1e-300)) for c, s in zip(counts, shares, strict=True) if c)

    ends = (max(0.0, -difference), (1 - difference) / 2)
    share = minimize_scalar(against, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    return float(
        (only_first - only_second - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))
    )


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(12, 2, 50), (3, 5, 40), (1, 9, 30), (40, 40, 200)])
def test_both_ends_are_where_the_score_test_turns(only_first: int, only_second: int, n: int) -> None:
    found = paired_score_interval(only_first, only_second, n, confidence=0.9)
    z = norm.ppf(0.95)
    assert found.value == (only_first - only_second) / n
    assert score_statistic(only_first, only_second, n, found.low) == pytest.approx(z, abs=1e-4)
    assert score_statistic(only_first, only_second, n, found.high) == pytest.approx(-z, abs=1e-4)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_an_answer_that_becomes_right_never_lowers_the_lower_end(counts: tuple[int, int, int]) -> None:
    only_first, only_second, n = counts
    only_second = min(only_second, n - only_first)
    now = paired_score_interval(only_first, only_second, n).low
    if only_second:
        assert paired_score_interval(only_first, only_second - 1, n).low >= now
    if only_first + only_second < n:
        assert paired_score_interval(only_first + 1, only_second, n).low >= now


def outcomes(n: int) -> tuple[np.ndarray, np.ndarray]:
    losses, gains = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    return losses[losses + gains <= n], gains[losses + gains <= n]


def chance_of(losses: np.ndarray, gains: np.ndarray, n: int, different: float, mean: float) -> np.ndarray:
    """The trinomial probability of each outcome, by its definition."""
    rest = n - losses - gains
    ways = special.gammaln(n + 1) - special.gammaln(losses + 1) - special.gammaln(gains + 1) - special.gammaln(rest + 1)
    up, down = (different + mean) / 2, (different - mean) / 2
    logs = special.xlogy(losses, up) + special.xlogy(gains, down) + special.xlogy(rest, 1 - different)
    return np.asarray(np.exp(ways + logs))


@pytest.mark.parametrize(("losses", "gains", "n", "mean"), [(3, 2, 60, 0.1), (0, 0, 60, 0.05), (10, 14, 60, 0.1)])
def test_the_p_value_is_the_greatest_chance_of_so_little_loss(losses: int, gains: int, n: int, mean: float) -> None:
    up, down = outcomes(n)
    error = np.sqrt(n * (np.maximum((up + down) / n, mean) - mean**2))
    statistic = (up - down - n * mean) / error
    seen = statistic[(up == losses) & (down == gains)][0]
    outside = 0.001
    m = losses + gains
    low = special.betaincinv(m, n - m + 1, outside / 2) if m else 0.0
    high = special.betaincinv(m + 1, n - m, 1 - outside / 2)
    shares = np.linspace(max(mean, low), high, 400)
    greatest = max(chance_of(up, down, n, share, mean)[statistic <= seen + 1e-9].sum() for share in shares)
    assert trinomial_p_value(losses, gains, n, mean) == pytest.approx(greatest + outside, abs=2e-4)


@pytest.mark.parametrize(("n", "mean", "level"), [(40, 0.1, 0.05), (40, 0.1, 0.0125)])
def test_a_true_mean_at_or_above_the_limit_is_rejected_as_seldom_as_stated(n: int, mean: float, level: float) -> None:
    up, down = outcomes(n)
    pairs = zip(up.tolist(), down.tolist(), strict=True)
    rejected = np.array([is_mean_below(mean, one, other, n, level=level) for one, other in pairs])
    sizes = [
        chance_of(up, down, n, different, true)[rejected].sum()
        for true in (mean, 1.5 * mean)
        for different in np.linspace(true, 1, 40)
    ]
    assert max(sizes) <= level
    assert max(sizes) > 0.75 * level


def test_the_bound_is_where_the_test_begins_to_reject() -> None:
    bound = trinomial_upper_bound(12, 8, 400)
    assert is_mean_below(bound, 12, 8, 400, level=0.05)
    assert not is_mean_below(bound - 1e-4, 12, 8, 400, level=0.05)
    assert trinomial_upper_bound(0, 0, 0) == 1.0
    values = np.repeat([1.0, -1.0, 0.0], [12, 8, 380])
    assert betting_p_value(values, bound, low=-1, high=1) > 0.05  # betting shows less
