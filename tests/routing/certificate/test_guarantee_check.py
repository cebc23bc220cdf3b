"""The guarantee on test rows: held, broken, or not decided by so few rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.evaluation.results import Evaluation
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.guarantee_check import check_guarantee

Build = Callable[..., Certificate]


def routed(n_wrong: int, n_accepted: int, *, n_escalated: int = 5) -> Evaluation:
    accepted = [
        evaluated_row(f"a{i}", "card", "fee" if i < n_wrong else "card", certified=True) for i in range(n_accepted)
    ]
    escalated = [evaluated_row(f"e{i}", "card", "fee", stage="large") for i in range(n_escalated)]
    return evaluation_of([*accepted, *escalated], candidate="routed")


@pytest.mark.parametrize(
    ("n_wrong", "n_accepted", "state"),
    [(0, 6, "held"), (10, 100, "held"), (12, 100, "inconclusive"), (40, 100, "broken"), (0, 0, "inconclusive")],
)
def test_certified_rows_alone_are_compared_with_the_guarantee(
    make_certificate: Build, n_wrong: int, n_accepted: int, state: str
) -> None:
    found = check_guarantee(make_certificate(max_error=0.1), routed(n_wrong, n_accepted))
    assert found is not None
    assert (found.state, found.n_errors, found.error.n, found.max_error) == (state, n_wrong, n_accepted, 0.1)


def test_the_interval_is_exact(make_certificate: Build) -> None:
    found = check_guarantee(make_certificate(), routed(0, 6))
    assert found is not None
    # With no error in n rows the exact two-sided 95 % bound is 1 - 0.025^(1/n).
    assert (found.error.low, found.error.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 6)))


def test_without_a_guarantee_of_errors_there_is_nothing_to_check(make_certificate: Build) -> None:
    assert check_guarantee(None, routed(0, 6)) is None
    assert check_guarantee(make_certificate(), None) is None
    assert check_guarantee(make_certificate(issued=False), routed(0, 6)) is None
    assert check_guarantee(make_certificate(max_error=1.0), routed(5, 6)) is None
