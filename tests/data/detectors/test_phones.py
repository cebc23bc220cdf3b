"""Telephone numbers of many countries, and figures that are none."""

from __future__ import annotations

import pytest

from smallfirst.data.redaction import redact

NUMBERS = [
    "+49 30 1234567", "0049 171 1234567", "+33 (0)6 12 34 56 78", "(030) 123 45 67", "0171-2345678",
    "06 12 34 56 78", "06-12345678",
    "07911 123456", "612 345 678", "98765 43210", "(11) 91234-5678", "601 234 567", "138 0013 8000",
    "8 (912) 345-67-89",
    "090-1234-5678", "(415) 555-2671", "415.555.2671", "+1 415 555 2671",
]  # fmt: skip
STAYS = [
    "01.02.2024", "2023-11-05", "600 000 000", "1 234 567 890", "order no. 04971342925",
    "https://example.com/item/028917647", "01234 56",
    "64 767 25 03 1 12 44", "p = 0.0855, 0.123-0.456", "+100 points", "1234567890", "978-3-16-148410-0",
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_goes(number: str) -> None:
    assert redact(f"I am at {number} now") == ("I am at [PHONE] now", {"phone": 1})


@pytest.mark.parametrize("text", STAYS)
def test_other_figures_stay(text: str) -> None:
    assert redact(text) == (text, {})
