"""Where a value stands in a text, in which form, and what marked words are read as."""

from typing import Any

import pytest

from smallfirst.models.spans.values import answer_places, occurrences, read_value, spelled_places, whole_number
from smallfirst.tasks.scorers import exact

TEXT = "On 05-Feb-2025 we sent 2 x 158,20 and 1 045,56 € net 30, Total $1,045.56 due March 7, 2025 or 07.03.2025"


@pytest.mark.parametrize(("value", "form", "words"), [
    ("Total", "text", ["Total"]), ("total", "lower", ["Total"]), ("NET", "upper", ["net"]),
    ("2025-02-05", "date", ["05-Feb-2025"]), ("2025-03-07", "date", ["March 7, 2025", "07.03.2025"]),
    (158.2, "number", ["158,20"]), (1045.56, "number", ["1 045,56", "1,045.56"]), (2, "number", ["2"]),
    ("gross", "text", []), (7, "text", []), ("2025-03-08", "date", []),
])  # fmt: skip
def test_every_place_of_a_value_is_found(value: Any, form: str, words: list[str]) -> None:
    found = occurrences(TEXT, value, form)
    assert [TEXT[start:end] for start, end in found] == words


def test_bare_hours_stand_where_a_time_is_said() -> None:
    text = "For 2 people at 7 tonight, or half past 2 in the afternoon, not 12:15 a.m."
    found = {value: occurrences(text, value, "time_pm") for value in ("19:00", "14:30", "00:15", "14:00")}
    assert [[text[a:b] for a, b in places] for places in found.values()] == [
        ["7"],
        ["half past 2 in the afternoon"],
        ["12:15 a.m."],
        [],
    ]


def test_white_space_and_case_are_folded_only_where_the_task_folds_them() -> None:
    assert occurrences("to New\n York now", "new york", "text", "case") == [(3, 12)]
    assert occurrences("to New\n York now", "new york", "text") == []
    assert occurrences("to New\n York now", "New York", "spaced") == [(3, 12)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("12, Jalan Taming 2, JB.", ["12 JALAN\nTAMING-2\n(JB"]),
        ("(JB).", ["(JB)."]),
        ("ming 2", []),  # within a word
        ("1.5", []),  # a point between two digits counts
        ("15", ["15"]),
        ("東京", ["東京"]),  # a script without spaces
        ("straße", ["STRASSE"]),
        ("…", []),
    ],
)
def test_a_value_is_found_in_other_spelling(value: str, words: list[str]) -> None:
    text = "12 JALAN\nTAMING-2\n(JB). 15 pcs 於東京站 HAUPTSTRASSE, STRASSE 1,5"
    assert [text[start:end] for start, end in spelled_places(text, value)] == words


@pytest.mark.parametrize(
    ("words", "form", "value"),
    [
        (" Bern ", "text", "Bern"),
        ("12  Elm,\n Bern", "spaced", "12 Elm, Bern"),
        ("12  Elm ,\n Bern\n\nCH", "commas", "12 Elm, Bern, CH"),
        ("New\nYork", "upper", "NEW YORK"),
        ("", "text", None),
        ("€644.90", "number", 644.9),
        ("1.651,15 PLN", "number", 1651.15),
        ("12", "number", 12),
        ("Three", "number", 3),
        ("-5", "number", -5),
        ("5 to 6", "number", None),
        ("2.150", "number", 2.15),
        ("2.150 euro", "thousands", 2150),
        ("1.234.567,50", "thousands", 1234567.5),
        ("3.25", "thousands", 3.25),
        ("four", "digits", "4"),
        ("4.5", "digits", None),
        ("soon", "number", None),
        ("(50)", "number", -50),
        ("($75.20)", "number", -75.2),
        ("(50 pieces)", "number", 50),
        (".5", "number", 0.5),
        ("3. März 2025", "date", "2025-03-03"),
        ("1er août 2026", "date", "2026-08-01"),
        ("3 de marzo de 2025", "date", "2025-03-03"),
        ("1 sierpnia 2026", "date", "2026-08-01"),
        ("2025年3月3日", "date", "2025-03-03"),
        ("12 widgets 2024", "date", None),
        ("03/05/2024", "date", "2024-03-05"),
        ("03/05/2024", "date_dmy", "2024-05-03"),
        ("30", "date", None),
        ("5 May", "date", None),  # without a year it is no date
        ("half past 11 in the morning", "time", "11:30"),
        ("quarter to 12 pm", "time", "11:45"),
        ("afternoon 1:30", "time", "13:30"),
        ("2 at night", "time_pm", "02:00"),
        ("12 at night", "time", "00:00"),
        ("10 at night", "time", "22:00"),
        ("six", "time", "06:00"),
        ("six", "time_pm", "18:00"),
        ("noon", "time_pm", "12:00"),
        ("06:15", "time_pm", "06:15"),
        ("25:00", "time", None),
    ],
)
def test_marked_words_are_read_in_their_form(words: str, form: str, value: Any) -> None:
    assert read_value(words, form) == value


def test_no_amount_is_taken_out_of_the_middle_of_a_number() -> None:
    text = "We paid £11,200 and 1,234,567 (50) or .5"
    assert [occurrences(text, n, "number") for n in (1, 11, 200, 234, 567, 1234, 4567, 5)] == [[]] * 8
    found = {n: [text[a:b] for a, b in occurrences(text, n, "number")] for n in (11200, 1234567, -50, 0.5)}
    assert found == {11200: ["11,200"], 1234567: ["1,234,567"], -50: ["(50)"], 0.5: [".5"]}


@pytest.mark.parametrize("marked", ["11", "200", "1", ",2"])
def test_a_mark_within_a_number_means_all_of_it(marked: str) -> None:
    start = (text := "We paid £11,200.").index(marked)
    assert text[slice(*whole_number(text, start, start + len(marked)))] == "11,200"
    assert whole_number("of 1,2,3", 5, 6) == (5, 6)  # a list


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("308", "gave up 308 points, 3081 in all, 308.", ["308", "308"]),
        ("Pub", "the pub is a Pub", ["Pub"]),
        ("the PUB", "at the pub, near a public place", ["the pub"]),
        ("eMail or fax", "by (e-mail) or a fax.", ["e-mail) or a fax"]),
        ("the green door", "a «green  door»!", ["green  door"]),
        ("$5.00", "costs $5.00 or more", ["$5.00"]),
        ("until noon", "from noon until ten", []),
        (" ", "anything", []),
        ("the", "an apple", []),
    ],
)
def test_places_of_an_answer(answer: str, text: str, found: list[str]) -> None:
    places = [text[place.start : place.end] for place in answer_places(answer, text)]
    assert places == found
    assert all(exact("", place, answer) for place in places)
