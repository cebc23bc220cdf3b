"""What a text stands for is searched, and what was written is replaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.detectors.normal_form import normal_form


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("ａ＠ｂ", "a@b"),
        ("٤١٢ ४१", "412 41"),
        ("a\u200bb\u00adc", "abc"),
        ("1\u00a02\u20113\u2212", "1 2-3-"),
        ("ﬁ½", "fi1⁄2"),
        (r"a\u0040b \\u0040 \x40 \n\"", 'a@b @ @ \n"'),
        ("a%40b a&#64;b a&commat;b 5%41", "a@b a@b a@b 5%41"),
        ("plain é", "plain é"),
    ],
)
def test_a_text_in_its_normal_form(written: str, plain: str) -> None:
    assert normal_form(written).text == plain


@given(st.text(alphabet="aé＠ﬁ½\u200b\\u0041%&#64; ", max_size=40))
def test_every_place_is_known_in_the_original(text: str) -> None:
    form = normal_form(text)
    places = [form.original(i, i) for i in range(len(form.text) + 1)]
    assert form.original(0, len(form.text))[1] == len(text)
    assert places == sorted(places)
    assert all(0 <= a <= len(text) for a, _ in places)
