"""The guarantee on test rows, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.report.data import ReportData
from smallfirst.report.text.guarantee import guarantee_sentence, guarantee_state

Make = Callable[..., ReportData]


@pytest.mark.parametrize(
    ("n_wrong", "n", "sentence"),
    [
        (0, 6, "held on the test rows. 0 of 6 kept test answers were wrong: 0.00 % [0.00, 45.93], within the guarant"),
        (40, 100, "The guarantee did not hold on the test rows. 40 of 100"),
        (12, 100, "above the guaranteed 10.0 %, but chance could explain it."),
        (0, 0, "No test answer was kept small, so the guarantee was not tested."),
    ],
)
def test_the_sentence_says_whether_it_held(make_report: Make, n_wrong: int, n: int, sentence: str) -> None:
    rows = [evaluated_row(f"r{i}", "a", "b" if i < n_wrong else "a", certified=True) for i in range(n)]
    routed = evaluation_of(rows, candidate="routed")
    data = make_report(evaluations=(make_report().evaluations[0], routed))
    assert sentence in guarantee_sentence(data).replace("\xa0", " ")


def test_without_a_guarantee_nothing_is_said(make_report: Make, make_certificate: Callable[..., Any]) -> None:
    for data in (make_report(certificate=None), make_report(certificate=make_certificate(max_error=1.0))):
        assert (guarantee_state(data), guarantee_sentence(data)) == ("", "")
