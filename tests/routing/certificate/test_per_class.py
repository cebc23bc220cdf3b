"""Certificates by label: by hand, against Holm, and the joint error rate by simulation."""

from __future__ import annotations

import math

import numpy as np

from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.routing.certificate.per_class import certify_classes
from smallfirst.stats.intervals import upper_bound


def labelled(said: list[str], right: list[bool], confidence: list[float], *, stages: int = 1) -> CascadeData:
    n = len(said)
    true, every = np.array([right] * stages), np.ones(n, dtype=bool)
    return CascadeData(
        names=tuple("abc"[:stages]),
        confidence=np.array([confidence] * stages),
        right=true,
        answer=np.array([said] * stages, dtype=object),
        cost_usd=np.zeros((stages + 1, n)),
        latency_ms=np.zeros((stages + 1, n)),
        asked=every,
        large_right=every,
        gold=every,
        agrees=true,
    )


def falling(n: int) -> list[float]:
    return [1 - i / (2 * n) for i in range(n)]


def test_a_label_that_is_often_wrong_is_not_promised_though_the_average_is_fine() -> None:
    said = ["card"] * 300 + ["loan"] * 100
    right = [True] * 300 + [i % 5 > 0 for i in range(100)]
    card, loan = certify_classes(labelled(said, right, falling(400)), (0.0,), limit=0.1, level=0.05)
    assert (card.label, card.n_accepted, card.n_errors, card.certified, card.labels_missing) == (
        "card",
        300,
        0,
        True,
        0,
    )
    assert (loan.label, loan.n_accepted, loan.n_errors, loan.certified, loan.labels_missing) == (
        "loan",
        100,
        20,
        False,
        None,
    )
    assert (card.threshold, loan.threshold) == (falling(400)[299], NEVER_ACCEPT)
    # Both could show something, so each begins with half of the level; card is shown throughout and passes its half on.
    assert card.error_bound == upper_bound(0, 300, confidence=0.975)
    assert loan.error_bound == upper_bound(20, 100, confidence=0.95)


def test_labels_too_rare_to_show_anything_take_no_share_of_the_level() -> None:
    said = ["common"] * 59 + [f"rare-{i}" for i in range(50)]
    found = {
        one.label: one
        for one in certify_classes(labelled(said, [True] * 109, falling(109)), (0.0,), limit=0.05, level=0.05)
    }
    assert found["common"].certified  # 59 rows without an error are just enough at the whole level
    assert not found["rare-0"].certified
    assert found["rare-0"].labels_missing == 58


def test_a_label_has_its_own_threshold_if_promised_by_label() -> None:
    # The surer 150 of 200 are right, the others wrong every second time.
    right = [True] * 150 + [i % 2 == 0 for i in range(50)]
    (one,) = certify_classes(
        labelled(["a"] * 200, right, falling(200)), (0.0,), limit=0.05, level=0.05, own_thresholds=True
    )
    assert one.certified
    assert 150 <= one.n_accepted <= 160
    assert upper_bound(one.n_errors, one.n_accepted) <= 0.05
    assert one.threshold == falling(200)[one.n_accepted - 1]
    # At a threshold that keeps all of them the same label is not certified.
    (whole,) = certify_classes(labelled(["a"] * 200, right, falling(200)), (0.0,), limit=0.05, level=0.05)
    assert not whole.certified


def test_several_stages_are_tested_at_the_walk_by_holm() -> None:
    said = ["card"] * 200 + ["loan"] * 100
    right = [True] * 200 + [i % 5 > 0 for i in range(100)]
    answers = labelled(said, right, falling(300), stages=2)
    found = {one.label: one.certified for one in certify_classes(answers, (NEVER_ACCEPT, 0.0), limit=0.1, level=0.05)}
    assert found == {"card": True, "loan": False}


def test_all_labels_hold_together_as_often_as_promised() -> None:
    draw, sets, broken = np.random.default_rng(0), 150, 0
    labels = np.array(list("abcd"))
    error = {"a": 0.101, "b": 0.101, "c": 0.02, "d": 0.3}  # a and b break 10 % by a hair: the hardest case
    for _ in range(sets):
        said = draw.choice(labels, 400)
        right = draw.random(400) >= np.array([error[label] for label in said])
        answers = labelled(said.tolist(), right.tolist(), draw.random(400).tolist())
        found = certify_classes(answers, (0.0,), limit=0.1, level=0.05, own_thresholds=True)
        broken += any(one.certified and error[one.label] > 0.1 for one in found)
    assert broken / sets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)
