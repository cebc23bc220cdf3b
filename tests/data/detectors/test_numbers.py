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
def test_what_is_no_telephone_number_stays(text: str) -> None:
    assert redact(text) == (text, {})


VALID = {
    "United States": "536-90-4399", "Germany, tax": "86 095 742 719", "Germany, pension": "65 170839 J 003",
    "France": "2 55 08 14 168 025 38",
    "Spain": "12345678Z", "Spain, foreigners": "X1234567L", "Italy": "RSSMRA85T10A562S", "Brazil": "111.444.777-35",
    "Brazil, companies": "11.222.333/0001-81", "Poland": "44051401359", "Poland, tax": "123-456-32-18",
    "India": "2341 2341 2346",
    "Sweden": "811228-9874", "Finland": "131052-308T", "Switzerland": "756.9217.0769.85",
    "Belgium": "85.07.30-033.28",
    "Singapore": "S1234567D", "China": "11010519491231002X", "Chile": "12.345.678-5",
    "Argentina": "20-12345678-6", "Turkey": "10000000146",
    "Czechia": "736028/5163", "Russia": "112-233-445 95", "Korea": "900101-1234567", "Denmark": "010190-1234",
    "United Kingdom": "AB 12 34 56 C", "India, tax": "ABCPE1234F", "Mexico": "HEGG560427MVZRRL04",
}  # fmt: skip
"""Numbers that the issuing offices or encyclopaedias give as examples."""
UNCHECKED = {"United States", "Korea", "Denmark", "United Kingdom", "India, tax", "Mexico"}
"""No figure of them checks the others."""


@pytest.mark.parametrize("country", VALID)
def test_a_number_of_a_person_goes(country: str) -> None:
    assert redact(f"it is {VALID[country]}, thanks").text == "it is [NATIONAL_ID], thanks"


@pytest.mark.parametrize("country", [country for country in VALID if country not in UNCHECKED])
def test_a_number_with_another_figure_is_no_number_of_a_person(country: str) -> None:
    number = VALID[country]
    at = max(i for i, c in enumerate(number[:-1]) if c.isdigit())
    other = number[:at] + str((int(number[at]) + 1) % 10) + number[at + 1 :]
    assert "national_id" not in redact(f"it is {other}, thanks").counts


@pytest.mark.parametrize(
    "number", ["000-12-3456", "666-12-3456", "900-12-3456", "536-00-4399", "536-90-0000", "BG123456C"]
)
def test_what_no_office_gives_out_stays(number: str) -> None:
    assert "national_id" not in redact(f"it is {number}").counts


def test_nine_figures_are_told_by_their_name() -> None:
    assert redact("the BSN is 111222333").text == "the BSN [NATIONAL_ID]".replace("BSN ", "BSN is ")
    assert redact("the sum is 111222333").counts == {}
    assert redact("order no. 44051401359").counts == {}
