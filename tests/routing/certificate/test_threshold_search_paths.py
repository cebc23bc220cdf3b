"""Tests along a path from several starts: against the general graphical algorithm, and their error by simulation."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.routing.certificate.threshold_search import rejected_on_path


def walked(p_values: np.ndarray, starts: list[tuple[int, float]], level: float) -> list[bool]:
    def shows(first: int, end: int, share: float) -> np.ndarray:
        return np.asarray(p_values[first:end] <= share)

    return rejected_on_path(shows, starts, len(p_values), level).tolist()


def by_the_graph(p_values: np.ndarray, starts: list[tuple[int, float]], level: float) -> list[bool]:
    """The algorithm of Bretz et al. 2009 on the path: a rejected hypothesis hands its weight to the next one left."""
    n = len(p_values)
    weight, left = dict.fromkeys(range(n), 0.0), list(range(n))
    for place, share in starts:
        if place < n:
            weight[place] += share
    while any(p_values[i] <= weight[i] * level for i in left):
        rejected = next(i for i in left if p_values[i] <= weight[i] * level)
        left.remove(rejected)
        later = [i for i in left if i > rejected]
        if later:
            weight[later[0]] += weight[rejected]
    return [i not in left for i in range(n)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 100_000))
def test_walking_from_the_starts_is_the_general_graphical_procedure(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 9))
    places = sorted(draw.integers(0, n + 1, int(draw.integers(1, 4))).tolist())
    starts = [(place, 1 / len(places)) for place in places]
    p_values = draw.choice([0.001, 0.01, 0.02, 0.04, 0.3], n)
    assert walked(p_values, starts, 0.05) == by_the_graph(p_values, starts, 0.05)


def test_a_walk_that_reaches_the_next_start_hands_its_share_on() -> None:
    starts = [(0, 0.25), (2, 0.75)]
    assert walked(np.array([0.01, 0.01, 0.05, 0.05]), starts, 0.05) == [True, True, True, True]
    # Stopped before the second start, the first share stays where it is.
    assert walked(np.array([0.01, 0.02, 0.05, 0.05]), starts, 0.05) == [True, False, False, False]
    assert walked(np.array([0.9, 0.9, 0.03, 0.04]), starts, 0.05) == [False, False, True, False]


def test_a_true_hypothesis_is_rejected_as_seldom_as_stated() -> None:
    draw, wrong, draws = np.random.default_rng(0), 0, 4000
    starts = [(0, 0.25), (2, 0.25), (4, 0.5)]
    for _ in range(draws):  # every second hypothesis is true, the others are never kept
        p_values = np.where(np.arange(8) % 2 == 1, draw.random(8), 0.0)
        wrong += any(walked(p_values, starts, 0.05)[1::2])
    assert wrong / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert wrong / draws >= 0.03  # the whole level is spent
