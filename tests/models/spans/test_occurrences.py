"""Answers are found in a text as people copy them: verbatim first, then in another case, then without their dress."""

from __future__ import annotations

import pytest

from smallfirst.models.spans.occurrences import occurrences
from smallfirst.tasks.scorers import exact


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
    places = [text[place.start : place.end] for place in occurrences(answer, text)]
    assert places == found
    assert all(exact("", place, answer) for place in places)
