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


def test_names_and_numbers_are_redacted_as_values_are():
    body = {
        "messages": [{"role": "tool", "content": '{"iban": "BE68539007547034"}'}],
        "metadata": {"ann@example.com": 1, "bob@example.com": 2, "password": "tulips", "pin": 4821, "n": 4821},
        "env": [{"name": "API_KEY", "value": "a1b2c3d4e5"}],
        "card": 4111111111111111,
        "max_tokens": 4096,
        "logprobs": [{"token": "abc1", "bytes": [97]}],
    }
    kept = kept_body(body)
    assert kept == body | {
        "messages": [{"role": "tool", "content": '{"iban": "[IBAN]"}'}],
        "metadata": {"[EMAIL]": 1, "[EMAIL] 2": 2, "password": "[PASSWORD]", "pin": "[PASSWORD]", "n": 4821},
        "env": [{"name": "API_KEY", "value": "[KEY]"}],
        "card": "[CARD]",
    }
    assert kept_body(kept) == kept
