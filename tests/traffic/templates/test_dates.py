"""Dates in constant text."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from smallfirst.traffic.templates.dates import with_dates_open
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

DAY = datetime(2026, 10, 5, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "written",
    [
        "2026-10-05",
        "05.10.2026",
        "10/05/2026",
        "5 October 2026",
        "Monday, October 5, 2026",
        "Oct 5th 2026",
        "2026-10-05T08:12:00Z",
    ],
)
def test_the_day_of_the_requests_is_a_slot(written):
    turn = TurnPattern(role="user", text=TextPattern(pieces=(f"Today is {written}. Since 2019-01-31: ", "")))
    opened = with_dates_open(Template(turns=(turn,)), DAY, DAY)
    assert opened.turns[0].text.pieces == ("Today is ", ". Since 2019-01-31: ", "")


def test_other_text_is_no_date():
    turn = TurnPattern(role="user", text=TextPattern(pieces=("On 99.99.2026 at Monday: ", "")))
    assert with_dates_open(Template(turns=(turn,)), DAY, DAY).turns[0] == turn
