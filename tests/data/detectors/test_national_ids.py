"""Numbers of persons are told by their check figures: one changed figure, and it is another number."""

from __future__ import annotations

import pytest

from smallfirst.data.redaction import redact

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
