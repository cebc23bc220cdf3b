"""What a draft is worth: one score of its confidence and of the distance of its request."""

import numpy as np
from fixtures.rows import text_rows
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.dataset import Dataset
from smallfirst.routing.acceptance import MIN_OWN_ROWS, AcceptanceScore, bundled_requests, foreign_rows


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
    made = text_rows("open", *(f"please write essay {i}" for i in range(60)), answer="", shape="text")
    fitting, certifying = foreign_rows(made)
    assert texts(certifying) < texts(made)
    assert texts(fitting) == (texts(made) - texts(certifying)) | texts(bundled_requests())
