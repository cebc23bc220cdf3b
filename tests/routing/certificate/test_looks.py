"""Looks: which certificates count together, and what all of them guarantee."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.looks import count_look, next_look, trial_fingerprint
from smallfirst.routing.certificate.threshold_search import search_threshold
from smallfirst.stats.sequential import spent_level


def test_rows_that_overlap_count_on_and_others_begin_at_one(tmp_path: Path) -> None:
    path = tmp_path / "task" / "looks.json"

    def look(trial: str, first: int, last: int) -> int:
        return count_look(path, {f"row-{i}" for i in range(first, last)}, trial)

    path.parent.mkdir()
    assert look("a", 0, 100) == 1
    assert look("b", 0, 100) == 2  # another model or guarantee on the same rows
    assert look("a", 0, 100) == 1  # the same certificate again
    assert look("c", 100, 200) == 1  # no row of any earlier look
    assert look("d", 199, 300) == 2  # shares a row with c alone
    assert look("e", 0, 300) == 5  # joins both
    assert look("f", 299, 400) == 6  # shares a row with d, and through e with a and b


def test_a_trial_is_the_guarantee_and_what_it_limits() -> None:
    def trial(guarantee: Guarantee, **row: float) -> str:
        return trial_fingerprint([evaluation_of([evaluated_row("k", "a", "a", **row)])], None, guarantee)

    error, cost = Guarantee(), Guarantee(max_usd_per_1k=1)
    assert trial(error, confidence=0.9) == trial(error, confidence=0.9 + 1e-9, cost_usd=2)
    assert len({trial(error), trial(cost), trial(cost, cost_usd=2), trial(error, confidence=0.5)}) == 4


def test_five_looks_together_are_wrong_at_most_as_often_as_stated() -> None:
    draw, draws, wrong = np.random.default_rng(4), 300, {"whole": 0, "spent": 0}
    for _ in range(draws):  # at every threshold a little more than 5 % is wrong; rows are added after each refusal
        confidence, right = draw.random(1500), draw.random(1500) >= 0.0501
        for name in wrong:
            wrong[name] += any(
                search_threshold(
                    confidence[: 300 * look].tolist(),
                    right[: 300 * look].tolist(),
                    Guarantee(confidence=0.95 if name == "whole" else 1 - spent_level(0.05, look)),
                ).n_accepted
                for look in range(1, 6)
            )
    assert wrong["spent"] / draws <= 0.05 < wrong["whole"] / draws


def test_the_number_of_the_next_look_is_known_beforehand_and_not_counted(tmp_path: Path) -> None:
    path, rows = tmp_path / "looks.json", {"row-1", "row-2"}
    assert next_look(path, rows) == 1
    assert count_look(path, rows, "first") == 1
    assert [next_look(path, rows), next_look(path, rows)] == [2, 2]
    assert next_look(path, {"row-3"}) == 1
