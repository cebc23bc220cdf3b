"""Cards and IBANs are told by their sums, in any groups; rows of figures are none."""

from __future__ import annotations

import pytest

from smallfirst.data.redaction import redact

CARDS = [
    "5555 5555 5555 4444", "2223003122003222", "378282246310005", "3782-822463-10005", "6011.1111.1111.1117",
    "3530111333300000",
    "3056 930902 5904", "4111/1111/1111/1111",
]  # fmt: skip
IBANS = [
    "de89 3704 0044 0532 0130 00", "NL91.ABNA.0417.1643.00", "fr1420041010050500013m02606",
    "PL 61 1090 1014 0000 0712 1981 2874",
]  # fmt: skip


@pytest.mark.parametrize("number", CARDS)
def test_cards_of_all_issuers(number: str) -> None:
    assert redact(f"pay with {number} now") == ("pay with [CARD] now", {"card": 1})


@pytest.mark.parametrize("number", IBANS)
def test_ibans_in_any_writing(number: str) -> None:
    assert redact(f"pay to {number} now") == ("pay to [IBAN] now", {"iban": 1})


@pytest.mark.parametrize(
    "text",
    ["0.4111111111111111", "1111 1111 1111 1117", "6462995216864", "51 013 278 48 740 9 4 3 1 83 12 99 411",
     "XX89370400440532013000",
     "DE8937040044053201300", "version 1.2.3.4", "EC 3.1.1.11"],
)  # fmt: skip
def test_other_figures_stay(text: str) -> None:
    assert redact(text) == (text, {})


def test_a_card_of_unusual_groups_needs_its_name() -> None:
    spaced = " ".join("4111111111111111")
    assert redact(f"my card {spaced}").counts == {"card": 1}
    assert redact(f"the row {spaced}").counts == {}
