"""Certificates under the names of the first months."""

from __future__ import annotations

from smallfirst.records import fingerprint
from smallfirst.routing.certificate.earlier_names import upgrade


def test_earlier_names_are_read_and_the_earlier_fingerprint_is_kept() -> None:
    old = {
        "promised_error": 0.1,
        "n_kept": 3,
        "promise": {"at_most_wrong": 0.1},
        "stages": [{"errors": 1}],
        "risks": [{"risk": "wrong"}, {"risk": "cost"}],
    }
    found = upgrade(old)
    assert (found["max_error"], found["n_accepted"], found["guarantee"]) == (0.1, 3, {"max_error": 0.1})
    assert found["stages"] == [{"n_errors": 1}]
    assert [one["risk"] for one in found["risks"]] == ["error", "cost"]
    assert found["earlier_fingerprint"] == fingerprint(old)
