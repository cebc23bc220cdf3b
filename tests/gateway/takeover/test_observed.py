"""Test rows of a learnt task are counted by requests, and the newest of them by themselves."""

from __future__ import annotations

import pytest
from fixtures.evaluations import evaluated_row

from smallfirst.gateway.takeover.observed import Observed, observe
from smallfirst.stats.intervals import wilson


def test_a_text_weighs_as_many_requests_as_asked_it() -> None:
    """Of four kept texts one is wrong, and nine of twelve requests ask it."""
    asked = {f"text {i}": {"n": n} for i, n in enumerate((9, 1, 1, 1, 50))}
    rows = [
        evaluated_row(str(i), "a", "b" if i in (0, 4) else "a", text=f"Text {i}!", certified=i != 4) for i in range(5)
    ]
    found = observe(rows, rows, asked, limit=0.3)
    assert found.differ is not None
    assert (found.differ.value, found.differ.n) == (0.75, 12)
    assert "frequent ones are answered worse" in found.in_words[0]
    assert "answered worse" not in found.model_copy(update={"limit": 0.8}).in_words[0]
    assert found.differ.low < 0.75 < found.differ.high
    assert found.in_words[0].startswith("counted by requests, 75.0% [")
    assert observe([row.model_copy(update={"certified": False}) for row in rows], rows, asked) == Observed()


@pytest.mark.parametrize(("n_right", "drifts"), [(24, False), (10, True)])
def test_the_newest_quarter_is_compared_with_the_rest(n_right: int, drifts: bool) -> None:
    """Rows stand in no order of time; of the last 25 of a hundred so many agree, of the others 70."""
    rows, asked = [], {}
    for i in [*range(0, 100, 2), *range(1, 100, 2)]:
        agrees = i % 15 != 0 if i < 75 else i - 75 < n_right
        rows.append(evaluated_row(str(i), "a", "a" if agrees else "b", text=f"text {i}"))
        asked[f"text {i}"] = {"n": 1, "at": f"2026-10-01T00:{i // 60:02}:{i % 60:02}+00:00"}
    found = observe(rows, rows, asked)
    assert found.newest is not None
    assert found.before is not None
    assert (found.newest.value, found.newest.n) == (n_right / 25, 25)
    assert (found.before.value, found.before.n) == (pytest.approx(70 / 75), 75)
    assert found.difference is not None
    assert found.difference.low < found.difference.value < found.difference.high
    assert ("learn again on newer traffic" if drifts else "no drift is shown") in found.in_words[-1]


def test_newcombes_interval_is_that_of_his_paper() -> None:
    """Newcombe (1998), table II, contrast (a) by method 10: 56/70 and 48/80."""
    found = Observed(newest=wilson(56, 70), before=wilson(48, 80)).difference
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_without_times_or_with_few_rows_nothing_is_compared() -> None:
    rows = [evaluated_row(str(i), "a", "a", text=f"text {i}") for i in range(36)]
    assert observe(rows, rows, {}).newest is None
    assert observe(rows, rows, {f"text {i}": {"at": f"{i:02}"} for i in range(36)}).newest is None
