"""Which values are the same under each normaliser."""

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from smallfirst.tasks.value_matching import Normalizer, lowered, normalize_value


def same(first: Any, second: Any, how: Normalizer) -> bool:
    """True if both are equal, hashes included."""
    a, b = normalize_value(first, how), normalize_value(second, how)
    return a == b and hash(a) == hash(b)


@pytest.mark.parametrize(
    ("how", "first", "second"),
    [
        ("exact", " a b ", "a b"),
        ("exact", "e\u0301", "\u00e9"),
        ("exact", 1, 1.0),
        ("case", "  New  YORK.", "“new york”"),
        ("case", "STRASSE", "straße"),
        ("words", "12, Elm-Road\n(Bern)", "12 elm road bern"),
        ("number", "1,234.50", 1234.5),
        ("number", "1.234,50", "1234.5"),
        ("number", "1,5", "1.5"),
        ("number", "Four", "four"),
        ("money", "$1,200.00", "1200 USD"),
        ("money", "-$5", "$-5.00"),
        ("money", "1.200,00 €", "EUR 1200"),
        ("money", "Rs. 500", "₹500"),
        ("money", "$5 USD", "US$5"),
        ("date", "2024-05-03", "May 3rd, 2024"),
        ("date", "2024-05-03T10:00:00Z", "5/3/2024"),
        ("date", "Sun, 05 Aug 2018", "Sunday the 5th of August 2018"),
        ("date", "25/12/2018", "2018-12-25"),  # there is no 25th month
        ("date", "03.05.2024", "2024-05-03"),  # points: day first
        ("date", "may 3", "3rd May"),
        ("number", "(50)", "-50"),
        ("number", "(1,234.50)", "−1234.50"),
        ("money", "($75.20)", "-75.20 USD"),
        ("date", "Freitag, den 6. Februar 2026", "2026-02-06"),
        ("date", "3 mars 2025", "2025-03-03"),
        ("date", "01/01/68", "2068-01-01"),
        ("date", "Tomorrow", "tomorrow"),
        ("date_dmy", "03/05/2024", "2024-05-03"),
    ],
)
def test_these_are_the_same(how: Normalizer, first: Any, second: Any) -> None:
    assert same(first, second, how)


@pytest.mark.parametrize(("how", "first", "second"), [
    ("exact", "A", "a"), ("exact", "a  b", "a b"), ("exact", "1", 1), ("exact", True, 1), ("exact", None, ""),
    ("exact", 0.1, 0.1 + 2**-55), ("case", "C++", "c"), ("number", "1.234", "1,234"),
    ("number", "1.2.3,4,5", "12345"), ("money", "$5", "€5"), ("money", "kr 5", "SEK 5"),
    ("money", "5 apples", "5"), ("date", "03/05/2024", "2024-05-03"), ("date", "May 3rd", "May 3rd, 2024"),
    ("date", "30 Feb 2024", "1 Mar 2024"), ("date", "2024-05-03", 20240503),
])  # fmt: skip
def test_these_are_not(how: Normalizer, first: Any, second: Any) -> None:
    assert not same(first, second, how)


def test_what_cannot_be_read_is_text_without_case() -> None:
    for how in ("number", "money", "date", "date_dmy"):
        assert normalize_value(" In 14  Days.", how) == normalize_value("in 14 days", "case")  # type: ignore[arg-type]


def test_lower_case_keeps_every_character_at_its_place() -> None:
    letters = "".join(c for c in map(chr, range(0x110000)) if not 0xD800 <= ord(c) < 0xE000)
    assert len(lowered(letters)) == len(letters)


@hypothesis.given(
    st.text(max_size=70) | st.integers() | st.floats(allow_nan=False), st.sampled_from(Normalizer.__args__)
)
@hypothesis.settings(deadline=None)
def test_anything_can_be_compared_and_is_the_same_as_itself(value: Any, how: Normalizer) -> None:
    assert same(value, value, how)


@hypothesis.given(st.decimals(-(10**9), 10**9, places=2))
def test_a_number_is_read_in_every_usual_form(amount: Any) -> None:
    plain = f"{amount:f}"
    grouped = f"{amount:,}"
    european = grouped.translate(str.maketrans(",.", ".,"))
    assert normalize_value(plain, "number") == normalize_value(grouped, "number") == normalize_value(european, "number")
    assert normalize_value(f"${grouped}".replace("$-", "-$"), "money") == ("money", "USD", amount)


@hypothesis.given(st.dates())
def test_a_date_is_read_in_every_usual_form(day: Any) -> None:
    wanted = ("date", day.year, day.month, day.day)
    year = f"{day.year:04d}"
    assert normalize_value(day.isoformat(), "date") == wanted
    assert normalize_value(f"{day.month}/{day.day}/{year}", "date") == wanted
    assert normalize_value(f"{day.day}/{day.month}/{year}", "date_dmy") == wanted
    assert normalize_value(f"{day:%B} {day.day}, {year}", "date") == wanted
    assert normalize_value(f"{day:%a} {day.day} {day:%b} {year}", "date_dmy") == wanted
