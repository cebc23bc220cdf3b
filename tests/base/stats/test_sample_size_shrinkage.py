"""Means on the same rows are shrunk as far as chance explains their differences."""

from __future__ import annotations

import pytest

from smallfirst.base.stats.sample_size import shrunk_means


def wrong(n_right: int, n: int) -> dict[str, float]:
    """Errors of a model that is right on the first rows: what is difficult for one is so for all."""
    return {str(i): float(i >= n_right) for i in range(n)}


def shrunk(*series: dict[str, float]) -> list[float]:
    return shrunk_means(series, least_spread=0.04, unknown=1.0)


def test_means_of_few_rows_are_shrunk_and_of_many_are_not() -> None:
    few = shrunk(*(wrong(right, 20) for right in (18, 19, 20)))
    assert few == sorted(few, reverse=True)
    assert 0 < few[2] < few[0] < 0.1
    many = shrunk(*(wrong(right, 20_000) for right in (18_000, 19_000, 20_000)))
    assert many == pytest.approx([0.1, 0.05, 0.0], abs=1e-3)
    assert shrunk(*[wrong(15, 20)] * 3) == pytest.approx([0.25] * 3)


def test_without_a_row_in_common_means_count_as_measured() -> None:
    assert shrunk() == []
    assert shrunk({}) == [1.0]
    assert shrunk({"a": 1.0, "b": 0.0}, {"c": 0.0}) == [0.5, 0.0]


def test_differences_by_row_tell_difficult_rows_from_a_better_model() -> None:
    """A tenth of the rows is wrong for both: they say nothing about the difference."""
    together = shrunk(wrong(85, 100), wrong(90, 100))
    apart = shrunk({str(i): float(i < 15) for i in range(100)}, wrong(90, 100))  # wrong on other rows
    assert together[0] - together[1] > 1.2 * (apart[0] - apart[1]) > 0
