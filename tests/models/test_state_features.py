"""Four features measure how unusual hidden states and logits are."""

import math

import numpy as np
import pytest

from smallfirst.models.state_features import LOGIT_FEATURES, STATE_FEATURES, HiddenStateProfile, logit_features


def test_energy_and_probability_by_hand() -> None:
    logits = np.array([[0.0, 0.0], [math.log(9), 0.0], [5.0, 5.0]])
    energy, probability = logit_features(logits).T
    assert energy == pytest.approx([-math.log(2), -math.log(10), -5 - math.log(2)])
    assert probability == pytest.approx([-math.log(0.5), -math.log(0.9), -math.log(0.5)])


def test_mahalanobis_distance_is_that_of_the_shrunk_shared_covariance() -> None:
    from sklearn.covariance import LedoitWolf

    draw = np.random.default_rng(0)
    gold = np.repeat([0, 1], 60)
    hidden = (draw.normal(size=(120, 3)) * [1, 5, 1] + np.array([[0, 0, 0], [20, 0, 0]])[gold]).astype(np.float32)
    asked = np.array([[0, 5, 0], [20, 0, 5], [10, 0, 0]], dtype=np.float32)
    found = HiddenStateProfile.fit(hidden, gold).nonconformity(asked)[:, 0]

    centred = np.vstack([hidden[gold == label] - hidden[gold == label].mean(axis=0) for label in (0, 1)])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(centred).covariance_)
    means = [hidden[gold == label].mean(axis=0) for label in (0, 1)]
    expected = [min(math.sqrt((x - mean) @ inverse @ (x - mean)) for mean in means) for x in asked]
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[0] < found[1]  # five along the wide axis is nearer than five along a narrow one


def test_foreign_states_are_unusual_by_every_feature_and_own_ones_by_none() -> None:
    draw = np.random.default_rng(1)
    centres = np.eye(4, dtype=np.float32) * 8
    gold = np.arange(400) % 4
    rows = (centres[gold] + draw.normal(size=(400, 4))).astype(np.float32)
    profile = HiddenStateProfile.fit(rows, gold)
    own = (centres[gold[:100]] + draw.normal(size=(100, 4))).astype(np.float32)
    foreign = draw.normal(size=(100, 4)).astype(np.float32)
    unusual, ordinary = (
        np.column_stack([logit_features(states), profile.nonconformity(states)]) for states in (foreign, own)
    )
    assert unusual.shape == (100, len(LOGIT_FEATURES) + len(STATE_FEATURES))
    assert (np.quantile(unusual, 0.1, axis=0) > np.quantile(ordinary, 0.9, axis=0)).all()
