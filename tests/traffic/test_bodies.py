"""Bodies lose personal data, media and vectors, and nothing else."""

from __future__ import annotations

from smallfirst.traffic.bodies import kept_body


def test_placeholders_stand_for_what_is_not_kept():
    words = "plain words of a long document " * 100
    body = {
        "mail": "to ann@example.com",
        "audio": "QUJD" * 400,
        "vector": [0.5] * 100,
        "tokens": [1, 2] * 100,
        "document": words,
        "created": 1764201600,
        "short": [0.1, 0.2],
    }
    kept = kept_body(body)
    assert kept == body | {"mail": "to [EMAIL]", "audio": "[1,600 characters of data]", "vector": "[100 numbers]"}
    assert kept_body(kept) == kept
