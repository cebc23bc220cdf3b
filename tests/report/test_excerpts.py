"""Texts cut for reading, within a budget for the page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smallfirst.report.excerpts import Excerpts, question_and_context


@given(st.text(max_size=3000), st.integers(20, 300))
def test_a_cut_text_begins_like_the_whole(text: str, limit: int) -> None:
    cut = Excerpts()(text, limit)
    assert text.startswith(cut.head.removesuffix(" …"))
    assert len(cut.head) <= limit + 20
    assert cut.whole in ("", text)
    assert cut.whole or cut.head == text


def test_whole_texts_end_with_the_budget() -> None:
    excerpt = Excerpts(budget_bytes=1000)
    assert excerpt("a " * 300).whole == "a " * 300
    assert excerpt("b " * 300).whole == ""
    assert excerpt("c").head == "c"
    # Each < takes four bytes as &lt;
    assert Excerpts(budget_bytes=1999)("<" * 500).whole == ""
    assert Excerpts(budget_bytes=2000)("<" * 500).whole == "<" * 500


def test_the_question_stands_after_the_last_blank_line() -> None:
    assert question_and_context("One.\n\nTwo.\n\nWho?") == ("Who?", "One.\n\nTwo.")
    assert question_and_context("Who?\n") == ("Who?", "")
