"""What a draft is worth: its head, weighed only where that helps, and one score of confidence and distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.protocol import Completion
from smallfirst.routing.confidence_head import (
    FEATURES,
    MIN_OWN_ROWS,
    AcceptanceScore,
    DraftHead,
    bundled_requests,
    features_of,
    foreign_rows,
    log_losses,
    log_odds,
    significantly_lower,
)


def draft(text: str = "a", confidence: float | None = 0.8, **more: object) -> Completion:
    return Completion.model_validate(
        {"text": text, "answered_by": "small", "latency_ms": 1, "cost_usd": 0, "confidence": confidence, **more}
    )


def drawn(n: int, seed: int, *, kind: str = "calibrated") -> tuple[list[Completion], list[bool], list[Completion]]:
    """Drafts, outcomes and a cheaper model's answers: it agrees with nine in ten right ones, and three in ten wrong."""
    draw = np.random.default_rng(seed)
    truth = draw.uniform(0.5, 1, n)
    right = draw.random(n) < truth
    agrees = draw.random(n) < np.where(right, 0.9, 0.3)
    own = {"calibrated": truth, "overconfident": 1 - (1 - truth) ** 3}[kind]
    drafts = [draft("a", float(p)) for p in own]
    return drafts, right.tolist(), [draft("a" if same else "b", 0.7) for same in agrees]


def auroc(scores: list[float], right: list[bool]) -> float:
    s, y = np.array(scores), np.array(right)
    above = s[y][:, None] - s[~y][None, :]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def test_features_of_a_label_by_hand() -> None:
    found = dict(zip(FEATURES, features_of(draft("ab", 0.6, alternatives=(("ab", 0.6), ("c", 0.3)))), strict=True))
    assert found["own"] == pytest.approx(math.log(0.6 / 0.4))
    assert found["margin"] == pytest.approx(math.log(2))
    assert found["entropy"] == pytest.approx(-(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)))
    assert found["characters"] == pytest.approx(math.log(3))
    assert found["least_field"] == found["mean_field"] == found["own"]
    assert found["same"] == found["cheaper"] == 0


@pytest.mark.parametrize(
    ("cheaper", "same", "probability"),
    [
        (draft("a", 0.7), 1, 0.7),
        (draft("b", 0.7), -1, 0.3),  # at most what its own answer leaves over
        (draft("b", 0.7, alternatives=(("b", 0.7), ("a", 0.2))), -1, 0.2),
        (draft("b", 0.7, alternatives=(("b", 0.7), ("c", 0.2))), -1, 0.1),  # what the listed ones leave
        (draft("b", 0.7, alternatives=(("b", 0.5), ("c", 0.1))), -1, 0.1),  # not more than the last of them
        (draft("a", None), 1, 0.5),
    ],
)
def test_agreement_with_a_cheaper_model(cheaper: Completion, same: int, probability: float) -> None:
    assert features_of(draft("a"), [cheaper])[-2:] == (same, pytest.approx(log_odds(probability)))


def test_agreement_is_weighed_where_it_tells_something() -> None:
    drafts, right, cheaper = drawn(400, 0)
    head = DraftHead.fit(drafts, right, others=[(other,) for other in cheaper])
    assert head.weights[FEATURES.index("same")] > 0
    fresh, outcomes, beside = drawn(400, 1)
    with_head = auroc([head.confidence(one, [other]) for one, other in zip(fresh, beside, strict=True)], outcomes)
    assert with_head > auroc([each.confidence or 0 for each in fresh], outcomes) + 0.05


def test_a_calibrated_confidence_without_a_cheaper_model_stays_as_it_is() -> None:
    for seed in range(5):
        drafts, right, _ = drawn(400, seed)
        head = DraftHead.fit(drafts, right)
        assert head.weights == ()
        assert "stays as it is" in head.why


def test_an_overconfident_model_is_calibrated_and_keeps_its_order() -> None:
    drafts, right, _ = drawn(600, 0, kind="overconfident")
    head = DraftHead.fit(drafts, right)
    assert "is calibrated" in head.why
    fresh, outcomes, _ = drawn(600, 1, kind="overconfident")
    own, bent = np.array([each.confidence or 0 for each in fresh]), np.array([head.confidence(each) for each in fresh])
    assert (np.diff(bent[np.argsort(own)]) >= 0).all()
    assert own.mean() > np.mean(outcomes) + 0.1
    assert bent.mean() == pytest.approx(np.mean(outcomes), abs=0.05)


def test_too_few_wrong_answers_leave_it_unfitted() -> None:
    drafts, _, cheaper = drawn(100, 0)
    head = DraftHead.fit(drafts, [True] * 91 + [False] * 9, others=[(other,) for other in cheaper])
    assert head.weights == ()
    assert "91 right, 9 wrong" in head.why


def test_losses_are_compared_by_their_standard_error() -> None:
    assert log_losses(np.array([0.8, 0.8]), np.array([1.0, 0.5])) == pytest.approx(
        [-math.log(0.8), -(math.log(0.8) + math.log(0.2)) / 2]
    )
    others = np.array([1.0, 1.0, 1.0, 1.0])
    gains = np.array([0.4, 0.0, 0.4, 0.0])  # mean 0.2, standard error 0.2309 / 2 = 0.1155
    assert significantly_lower(others - gains, others, errors=1.7)
    assert not significantly_lower(others - gains, others, errors=1.8)


def test_with_few_rows_agreement_alone_is_weighed_and_several_models_count_by_their_mean() -> None:
    drafts, right, cheaper = drawn(400, 0)
    spread = [
        each.model_copy(update={"text": "a" * (1 + i % 7), "completion_tokens": i % 5}) for i, each in enumerate(drafts)
    ]
    others = [
        (c.model_copy(update={"text": s.text if c.text == "a" else "b"}),) for s, c in zip(spread, cheaper, strict=True)
    ]
    wrong = [i for i, ok in enumerate(right) if not ok][:35]  # three features at most
    rows = sorted([*wrong, *[i for i, ok in enumerate(right) if ok]])
    head = DraftHead.fit([spread[i] for i in rows], [right[i] for i in rows], others=[others[i] for i in rows])
    assert head.why.startswith("features of agreement are used")
    assert [name for name, weight in zip(FEATURES, head.weights, strict=True) if weight] == ["own", "same", "cheaper"]
    pair = [draft("a", 0.7), draft("b", 0.7)]
    assert features_of(draft("a"), pair)[-2:] == (0.0, pytest.approx(0.0))
    assert (
        head.confidence(draft("a"), pair[:1])
        > head.confidence(draft("a"), pair)
        > head.confidence(draft("a"), pair[1:])
    )


def both_kinds(
    seed: int, n: int = 200
) -> tuple[tuple[list[float], np.ndarray, list[bool]], tuple[list[float], np.ndarray]]:
    """Own drafts are right as often as they say; foreign ones are as confident, and far away in the first feature."""
    draw = np.random.default_rng(seed)
    own, foreign = draw.uniform(0.5, 1, n), draw.uniform(0.5, 1, n)
    near, far = draw.exponential(1, (n, 2)), draw.exponential(1, (n, 2)) + [4, 0]
    return (own.tolist(), near, (draw.random(n) < own).tolist()), (foreign.tolist(), far)


def fitted(seed: int = 0, share: float = 0.5) -> AcceptanceScore:
    found = AcceptanceScore.fit(*both_kinds(seed), share=share)
    assert found is not None
    return found


def test_confidence_and_distance_decide_together() -> None:
    score, ((own, near, right), (foreign, far)) = fitted(), both_kinds(1)
    kept = [score.confidence(*one) for one in zip(own, near, strict=True)]
    others = [score.confidence(*one) for one in zip(foreign, far, strict=True)]
    assert np.mean(others) < 0.1
    assert np.mean([k for k, ok in zip(kept, right, strict=True) if ok]) > 0.6
    assert np.mean(kept) > np.mean(others) + 0.4
    # Confidence alone does not tell them apart.
    assert abs(np.mean(own) - np.mean(foreign)) < 0.05


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 20), st.floats(0, 20))
def test_it_never_falls_with_the_confidence_and_never_rises_with_a_distance(
    first: float, second: float, near: float, far: float
) -> None:
    score, (low, high), (near, far) = SCORE, sorted((first, second)), sorted((near, far))
    assert score.confidence(low, (near, 1.0)) <= score.confidence(high, (near, 1.0))
    assert score.confidence(low, (near, 1.0)) >= score.confidence(low, (far, 1.0))
    assert 0 <= score.confidence(high, (far, near)) <= 1


SCORE = fitted()


def test_a_feature_that_would_help_with_the_wrong_sign_gets_no_weight() -> None:
    own, (foreign, far) = both_kinds(2)
    turned = AcceptanceScore.fit((own[0], -own[1], own[2]), (foreign, -far))
    assert turned is not None
    assert turned.weights[1] == 0
    assert min(turned.weights) >= 0


def test_more_foreign_requests_lower_the_score_and_few_rows_are_not_fitted() -> None:
    assert fitted(share=0.9).confidence(0.8, (1.0, 1.0)) < fitted(share=0.0).confidence(0.8, (1.0, 1.0))
    (own, near, right), foreign = both_kinds(3, MIN_OWN_ROWS - 1)
    assert AcceptanceScore.fit((own, near, right), foreign) is None
    again = AcceptanceScore.model_validate_json(SCORE.model_dump_json())
    assert again.confidence(0.7, (0.5, 2.0)) == SCORE.confidence(0.7, (0.5, 2.0))


def texts(rows: Dataset) -> set[str]:
    return {example.text for example in rows.examples}


def test_fitting_and_certifying_rows_share_no_text() -> None:
    fitting, certifying = foreign_rows(None)
    assert texts(fitting) | texts(certifying) == texts(bundled_requests())
    assert not texts(fitting) & texts(certifying)
    assert min(len(fitting), len(certifying)) >= 40
    assert len(texts(bundled_requests())) == len(bundled_requests())  # no line twice


def test_open_ended_requests_of_the_task_certify_without_the_bundled_ones() -> None:
    made = tuple(
        Example(messages=(Message(role="user", content=f"please write essay {i}"),), answer="", shape="text")
        for i in range(60)
    )
    fitting, certifying = foreign_rows(Dataset(name="open", examples=made))
    assert texts(certifying) < {example.text for example in made}
    assert texts(fitting) == ({example.text for example in made} - texts(certifying)) | texts(bundled_requests())
