"""Certificates by label: by hand, against Holm, and the joint error rate by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fixtures.certificates import cascade, falling
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import DataError
from smallfirst.base.stats.intervals import upper_bound
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, cascade_data
from smallfirst.routing.certificate.units import GroupCertificate, certify_groups, search_limits


def labelled(answers: list[str], right: list[bool], confidence: list[float]) -> CascadeData:
    return cascade([confidence], [right], part=np.array(answers, dtype=object))


def certified(data: CascadeData, limit: float) -> tuple[GroupCertificate, ...]:
    return certify_groups(data, limit, level=0.05)


def figures(one: GroupCertificate) -> tuple[object, ...]:
    return one.label, one.n_accepted, one.n_errors, one.certified, one.labels_missing


def test_a_label_that_is_often_wrong_is_not_certified_though_the_average_is_fine() -> None:
    answers = ["card"] * 300 + ["loan"] * 100
    right = [True] * 300 + [i % 5 > 0 for i in range(100)]
    card, loan = certified(labelled(answers, right, falling(400)), 0.1)
    assert figures(card) == ("card", 300, 0, True, 0)
    assert figures(loan) == ("loan", 100, 20, False, None)
    assert (card.threshold, loan.threshold) == (falling(400)[299], NEVER_ACCEPT)
    # Both could show something, so each begins with half of the level; card is shown throughout and passes its half on.
    assert card.error_bound == upper_bound(0, 300, confidence=0.975)
    assert loan.error_bound == upper_bound(20, 100, confidence=0.95)


def test_labels_too_rare_to_show_anything_take_no_share_of_the_level() -> None:
    answers = ["common"] * 59 + [f"rare-{i}" for i in range(50)]
    found = {one.label: one for one in certified(labelled(answers, [True] * 109, falling(109)), 0.05)}
    assert found["common"].certified  # 59 rows without an error are just enough at the whole level
    assert not found["rare-0"].certified
    assert found["rare-0"].labels_missing == 58


def test_a_label_has_its_own_threshold_if_guaranteed_per_class() -> None:
    # The surer 150 of 200 are right, the others wrong every second time.
    right = [True] * 150 + [i % 2 == 0 for i in range(50)]
    (one,) = certified(labelled(["a"] * 200, right, falling(200)), 0.05)
    assert one.certified
    assert 150 <= one.n_accepted <= 160
    assert upper_bound(one.n_errors, one.n_accepted) <= 0.05
    assert one.threshold == falling(200)[one.n_accepted - 1]


def test_all_labels_hold_together_as_often_as_stated() -> None:
    draw, sets, broken = np.random.default_rng(0), 150, 0
    labels = np.array(list("abcd"))
    error = {"a": 0.101, "b": 0.101, "c": 0.02, "d": 0.3}  # a and b break 10 % by a hair: the hardest case
    for _ in range(sets):
        answers = draw.choice(labels, 400)
        right = draw.random(400) >= np.array([error[label] for label in answers])
        answers = labelled(answers.tolist(), right.tolist(), draw.random(400).tolist())
        found = certified(answers, 0.1)
        broken += any(one.certified and error[one.label] > 0.1 for one in found)
    assert broken / sets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)


def test_groups_may_be_the_values_of_a_tag() -> None:
    channel = ["mail"] * 300 + ["chat"] * 100
    rows = [
        evaluated_row(f"{i}", "a", "a" if i < 300 or i % 5 else "b", confidence=score, tags={"channel": channel[i]})
        for i, score in enumerate(falling(400))
    ]
    guarantee = Guarantee(max_error=0.1, per_group="channel")
    found = search_limits(cascade_data([evaluation_of(rows)], guarantee=guarantee), guarantee, 0.05, None)
    assert [(one.label, one.certified) for one in found.groups] == [("chat", False), ("mail", True)]
    assert found.accepted.tolist() == [True] * 300 + [False] * 100


def test_a_calibration_row_without_the_tag_is_an_error() -> None:
    rows = [evaluated_row(f"{i}", "a", "a", tags={"channel": "x"} if i else {}) for i in range(4)]
    with pytest.raises(DataError, match="1 of 4 calibration rows have no channel"):
        cascade_data([evaluation_of(rows)], guarantee=Guarantee(per_group="channel"))


def test_nothing_is_said_about_groups_that_nobody_asked_for() -> None:
    assert certified(cascade(falling(200), [True] * 200), 0.05) == ()
