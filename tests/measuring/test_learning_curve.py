"""Nested parts by hand and as a law; a forecast that finds a known curve again and refuses where there is none."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from smallfirst.base.errors import ConfigError
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.measuring.learning_curve import LearningPoint, forecast, subsets_per_label


def rows(numbers: dict[str, int]) -> Dataset:
    """So many rows of each label."""
    examples = tuple(
        Example(messages=(Message(role="user", content=f"{label} number {i}"),), answer=label, shape="label")
        for label, n in numbers.items()
        for i in range(n)
    )
    return Dataset(name="train", examples=examples)


def counts(part: Dataset) -> dict[str, int]:
    return {label: sum(e.answer == label for e in part.examples) for label in part.labels()}


def points(
    law: tuple[float, float, float], sizes: tuple[int, ...], *, n_test: int = 4000, name: str = "small"
) -> list[LearningPoint]:
    limit, gap, rate = law
    return [
        LearningPoint(n_rows=n, candidate=name, accuracy=wilson(round(n_test * (limit - gap * n**-rate)), n_test))
        for n in sizes
    ]


def test_a_part_has_so_many_rows_of_each_label_and_all_of_rare_ones() -> None:
    parts = subsets_per_label(rows({"a": 40, "b": 12, "c": 3}), (30, 5, 10))
    assert [counts(part) for part in parts] == [
        {"a": 5, "b": 5, "c": 3},
        {"a": 10, "b": 10, "c": 3},
        {"a": 30, "b": 12, "c": 3},
    ]
    assert [part.name for part in parts] == ["train:5 per label", "train:10 per label", "train:30 per label"]


def test_a_step_that_adds_nothing_is_left_out_and_the_whole_is_no_part() -> None:
    assert subsets_per_label(rows({"a": 4, "b": 4}), (2, 3, 4, 5)) == subsets_per_label(rows({"a": 4, "b": 4}), (2, 3))
    assert subsets_per_label(rows({"a": 4}), (4, 9)) == ()


def test_parts_do_not_depend_on_the_order_of_rows() -> None:
    data = rows({"a": 30, "b": 30})
    turned = data.subset("train", tuple(reversed(data.examples)))
    assert [p.content_fingerprint for p in subsets_per_label(data, (5, 10))] == [
        p.content_fingerprint for p in subsets_per_label(turned, (5, 10))
    ]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 15), min_size=1),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_every_part_lies_within_the_next(numbers: dict[str, int], per: list[int]) -> None:
    data = rows(numbers)
    keys = [{e.key for e in part.examples} for part in (*subsets_per_label(data, per), data)]
    assert all(smaller < larger for smaller, larger in pairwise(keys))


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 1 \(got 0, -2\)"):
        subsets_per_label(rows({"a": 4}), (0, 3, -2))


def test_a_known_curve_is_found_again_and_looked_along() -> None:
    law = (0.95, 1.5, 0.5)
    found = forecast(points(law, (100, 300, 1000, 3000), n_test=100_000), 6000)
    assert found.accuracy is not None
    assert found.law is not None
    assert found.accuracy.value == pytest.approx(0.95 - 1.5 / np.sqrt(6000), abs=0.003)
    assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high
    assert found.law.limit == pytest.approx(0.95, abs=0.01)
    assert found.law.rate == pytest.approx(0.5, abs=0.05)
    assert found.why.startswith("6,000 rows would give about 0.93")


def test_the_interval_of_a_forecast_covers_the_truth_about_as_often_as_it_says() -> None:
    law, sizes, n_test, draw = (0.92, 1.2, 0.45), (100, 300, 1000, 3000), 2000, np.random.default_rng(5)
    truth, covered, made = 0.92 - 1.2 * 6000**-0.45, 0, 0
    for _ in range(60):
        seen = [
            LearningPoint(
                n_rows=n,
                candidate="small",
                accuracy=wilson(int(draw.binomial(n_test, law[0] - law[1] * n ** -law[2])), n_test),
            )
            for n in sizes
        ]
        found = forecast(seen, 6000).accuracy
        made += found is not None
        covered += found is not None and found.low <= truth <= found.high
    assert made >= 50
    assert covered / made >= 0.88


@pytest.mark.parametrize("law", [(0.9, 1.0, 0.4), (1.03, 0.6, 0.3), (1.2, 0.7, 0.15)])
def test_the_curve_is_the_one_that_a_general_optimizer_finds_within_the_same_bounds(
    law: tuple[float, float, float],
) -> None:
    seen = points(law, (30, 100, 300, 1000), n_test=2000)
    rows_seen = np.array([float(p.n_rows) for p in seen])
    reference, _ = curve_fit(
        lambda n, limit, gap, rate: limit - gap * n**-rate,
        rows_seen,
        [p.accuracy.value for p in seen],
        p0=(0.9, 1.0, 0.5),
        sigma=[p.accuracy.high - p.accuracy.low for p in seen],
        bounds=([0, 0, 0.05], [1, 50, 2]),
    )
    found = forecast(seen, 2000).law
    assert found is not None
    assert found.limit <= 1
    assert found.limit == pytest.approx(reference[0], abs=0.01)
    for n in (*rows_seen, 2000):
        assert found.at(int(n)) == pytest.approx(reference[0] - reference[1] * n ** -reference[2], abs=0.002)


@pytest.mark.parametrize(
    ("seen", "n_rows", "why"),
    [
        (points((0.9, 1.0, 0.5), (100, 400)), 800, "3 numbers of rows are needed and 2 were measured"),
        (points((0.9, 1.0, 0.5), (100, 400, 900)), 3601, "more than 4 times the 900 measured"),
        (points((0.9, 0.0, 0.5), (100, 400, 900)), 1800, "rows could be chance"),
        (points((0.9, 1.0, 0.5), (100, 400, 900), n_test=40), 1800, "rows could be chance"),
        (points((0.9, 3.0, 0.5), (30, 60, 90), n_test=150), 360, "at 360 rows anything from"),
    ],
)
def test_a_forecast_is_refused_with_its_reason(seen: list[LearningPoint], n_rows: int, why: str) -> None:
    found = forecast(seen, n_rows)
    assert found.accuracy is None
    assert found.law is None
    assert why in found.why


def test_points_that_jump_follow_no_power_law() -> None:
    shares = ((100, 0.5), (300, 0.9), (1000, 0.6), (3000, 0.95))
    seen = [
        LearningPoint(n_rows=n, candidate="small", accuracy=Estimate(value=v, low=v - 0.01, high=v + 0.01, n=9000))
        for n, v in shares
    ]
    assert "do not follow a power law" in forecast(seen, 6000).why


def test_a_forecast_is_for_one_candidate() -> None:
    law = (0.9, 1.0, 0.5)
    with pytest.raises(ValueError, match="not for small, words"):
        forecast(points(law, (100, 200)) + points(law, (400,), name="words"), 800)
    with pytest.raises(ValueError, match="not for none"):
        forecast([], 800)
