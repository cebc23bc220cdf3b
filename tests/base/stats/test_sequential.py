"""Sequential tests: fair by enumeration, valid by simulation, and quick when something changes."""

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from smallfirst.base.stats.intervals import Estimate
from smallfirst.base.stats.sequential import GuaranteeTest, RecoveryTest, weighted_interval

CALM = settings(max_examples=60, deadline=None)


def test_the_recursion_is_the_mixture_over_start_times() -> None:
    outcomes = [False, True, True, False, True, False, False]
    test = GuaranteeTest(0.1)
    for wrong in outcomes:
        test.update(wrong)
    left = [1 / (1 + math.log(1 + t / 30)) for t in range(len(outcomes) + 1)]
    expected = left[-1]
    for odds, prior in ((1.5, 3), (2.0, 4), (3.0, 2), (5.0, 1), (10.0, 0.4), (30.0, 0.2)):
        theta = odds / 9 / (1 + odds / 9)
        bet = (theta - 0.1) / (0.1 * 0.9)
        for start in range(len(outcomes)):
            product_from_start = math.prod(1 + bet * (wrong - 0.1) for wrong in outcomes[start:])
            expected += (left[start] - left[start + 1]) * product_from_start * prior / 10.6
    assert test.e_value == pytest.approx(expected)


def mean_evidence(make: Callable[[], GuaranteeTest | RecoveryTest], rate: float, n: int) -> float:
    """The expected evidence after n audits at an error rate, over all outcomes."""
    mean = 0.0
    for outcomes in product((False, True), repeat=n):
        test = make()
        for wrong in outcomes:
            test.update(wrong)
        mean += rate ** sum(outcomes) * (1 - rate) ** (n - sum(outcomes)) * test.e_value
    return mean


@CALM
@given(st.floats(0.01, 0.9), st.floats(0, 1), st.integers(1, 8))
def test_evidence_against_a_true_guarantee_is_at_most_1_on_average(limit: float, below: float, n: int) -> None:
    mean = mean_evidence(lambda: GuaranteeTest(limit), below * limit, n)
    assert mean <= 1 + 1e-9
    if below == 1:
        assert mean == pytest.approx(1)


@pytest.mark.parametrize("limit", [0.05, 0.5])
def test_evidence_for_a_recovery_is_at_most_1_on_average_while_there_is_none(limit: float) -> None:
    assert mean_evidence(lambda: RecoveryTest(limit), limit, 8) == pytest.approx(1)
    assert mean_evidence(lambda: RecoveryTest(limit), (1 + limit) / 2, 8) < 1


def drawn_with_weights(make: Callable[[], GuaranteeTest | RecoveryTest], rates: tuple[float, float], n: int) -> float:
    """The expected evidence over n accepted rows: half of them with a chance of 0.2 and the first error rate, half of
    them with 0.05 and the second; the mean chance is 0.125."""
    rows = [(0.5 * 0.2 * rates[0], True, 0.625), (0.5 * 0.2 * (1 - rates[0]), False, 0.625)]
    rows += [(0.5 * 0.05 * rates[1], True, 2.5), (0.5 * 0.05 * (1 - rates[1]), False, 2.5)]
    mean = 0.0
    for path in product([*rows, (0.875, None, 0.0)], repeat=n):
        test = make()
        for _, wrong, weight in path:
            if wrong is not None:
                test.update(wrong, weight)
        mean += math.prod(chance for chance, _, _ in path) * test.e_value
    return mean


def test_evidence_from_rows_drawn_with_unequal_chances_is_at_most_1_on_average() -> None:
    """Errors of 1 and 19 % are a mean of 10 %: just the limit, though twice as often among the rows drawn."""
    for rates in ((0.01, 0.19), (0.19, 0.01)):
        assert drawn_with_weights(lambda: GuaranteeTest(0.1, max_weight=2.5), rates, 4) == pytest.approx(1)
        assert drawn_with_weights(lambda: RecoveryTest(0.1, max_weight=2.5), rates, 4) == pytest.approx(1)
    assert drawn_with_weights(lambda: GuaranteeTest(0.1, max_weight=2.5), (0.03, 0.03), 4) < 1


def test_a_weight_above_its_bound_is_refused() -> None:
    for test in (GuaranteeTest(0.1, max_weight=2), RecoveryTest(0.1, max_weight=2)):
        test.update(True, 2)
        for weight in (2.1, 0):
            with pytest.raises(ValueError, match="weight"):
                test.update(True, weight)
    with pytest.raises(ValueError, match="weight"):
        weighted_interval({(1.5, True): 1})


@pytest.mark.parametrize(("errors", "n"), [(0, 40), (3, 40), (40, 40), (100, 3000)])
def test_with_equal_weights_the_interval_ends_where_the_likelihood_is_alpha_times_its_average(
    errors: int, n: int
) -> None:
    counts = {key: count for key, count in {(1.0, True): errors, (1.0, False): n - errors}.items() if count}
    found = weighted_interval(counts)
    average = special.betaln(errors + 0.5, n - errors + 0.5) - special.betaln(0.5, 0.5)
    for end, given_away in ((found.low, errors > 0), (found.high, errors < n)):
        if given_away:
            likelihood = special.xlogy(errors, end) + special.xlog1py(n - errors, -end)
            assert average - likelihood == pytest.approx(-math.log(0.05), abs=0.05)
        else:
            assert end in (0.0, 1.0)


def test_the_weighted_interval_covers_at_every_audit_at_once() -> None:
    """Errors of 30 and 2 % in halves, drawn at 3 to 1: the mean is 16 %, though 23 % of the rows drawn are wrong."""
    draw, missed, n, draws = np.random.default_rng(3), 0, 60, 20
    for _ in range(draws):
        counts: Counter[tuple[float, bool]] = Counter()
        for _ in range(n):
            often = draw.random() < 0.75
            counts[2 / 3 if often else 2.0, bool(draw.random() < (0.3 if often else 0.02))] += 1
            if not _covers(found := weighted_interval(counts, 0.8, max_weight=2), 0.16):
                missed += 1
                break
        assert found.low <= found.value <= found.high
    assert missed / draws <= 0.2
    many = Counter({(2 / 3, True): 225, (2 / 3, False): 525, (2.0, True): 5, (2.0, False): 245})
    found = weighted_interval(many, max_weight=2)
    assert (found.value, found.n) == (pytest.approx(0.16), 1000)
    assert found.high - found.low < 0.11


def test_a_guarantee_that_just_holds_is_seldom_called_broken() -> None:
    draw, false_alarms = random.Random(1), 0
    for _ in range(300):
        test = GuaranteeTest(0.1, 0.8)
        for _ in range(400):
            test.update(draw.random() < 0.1)
        false_alarms += test.rejected
    assert 0 < false_alarms / 300 <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 300)


@pytest.mark.parametrize(("quiet", "most"), [(0, 60), (5000, 90)])
def test_a_broken_guarantee_is_found_soon_even_if_it_breaks_late(quiet: int, most: int) -> None:
    for seed in range(10):
        draw, test = random.Random(seed), GuaranteeTest(0.03)
        for _ in range(quiet):
            test.update(draw.random() < 0.02)
        assert not test.rejected
        while not test.rejected and test.n < quiet + most:
            test.update(draw.random() < 0.35)
        assert test.rejected


def test_an_alarm_stays() -> None:
    test = GuaranteeTest(0.03)
    for _ in range(1000):
        test.update(True)
    assert test.rejected
    assert math.isfinite(test.e_value)
    for _ in range(40_000):
        test.update(False)
    assert test.rejected
    assert test.e_value < 1


def test_a_repaired_model_recovers_though_it_was_wrong_for_long() -> None:
    """Without an error bets on a thirtieth of the odds grow by 3 % an audit at most: 0.03 n = ln 20 + ln 6 + late."""
    test = RecoveryTest(0.03)
    for number in range(2000):
        test.update(number % 3 == 0)
    assert not test.rejected
    while not test.rejected and test.n < 2000 + 700:
        test.update(False)
    assert test.rejected
    assert (test.n > 2000 + 150, test.losses) == (True, 667)
    assert weighted_interval({(1.0, True): 667, (1.0, False): test.n - 667}).low > 0.03


def _covers(interval: Estimate, rate: float) -> bool:
    return interval.low <= rate <= interval.high
