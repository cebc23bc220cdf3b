"""A correction is carried over to near cases with the same recorded answer, and to no others."""

from __future__ import annotations

import numpy as np
import pytest

from smallfirst.gateway.takeover import learning
from smallfirst.gateway.takeover.learning import mended

ANGLES = {"card gone": 0.0, "card lost": 0.3, "card stolen": 0.9, "loan": 1.6, "other loan": 1.5, "far": 3.1}


class _Encoder:
    def embed(self, texts):
        angles = np.array([ANGLES[text] for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setattr(learning, "open_encoder", lambda folder: _Encoder())


def test_near_cases_with_the_same_recorded_answer_are_mended(tmp_path):
    texts = ["card lost", "card stolen", "loan", "far"]
    given = ["delivery", "delivery", "delivery", "delivery"]
    corrected = [("card gone", "delivery", "lost card"), ("other loan", "loans", "mortgage")]
    # cos(0.3) and cos(0.9) are above 0.6; cos(1.6) and cos(3.1) are not.
    assert mended(texts, given, corrected, tmp_path) == ["lost card", "lost card", "delivery", "delivery"]
    assert mended(texts, ["delivery", "pin", "loans", "pin"], corrected, tmp_path) == [
        "lost card",
        "pin",
        "mortgage",
        "pin",
    ]


def test_what_people_confirmed_stays(tmp_path):
    assert mended(["card lost"], ["delivery"], [("card gone", "delivery", "delivery")], tmp_path) == ["delivery"]
    assert mended(["card lost"], ["delivery"], [], tmp_path) == ["delivery"]
