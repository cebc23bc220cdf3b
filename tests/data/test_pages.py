"""What stands around marks: only words of their own page, shortened, each mark with its words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.data.pages import AROUND, PAGE_BREAK, PagePlace, Piece, Span, kept_span, marked_passages

TEXT = st.lists(st.sampled_from(["total", "12,00", "\n", PAGE_BREAK, " ", "x" * 40, "é😀", " of it " * 30])).map(
    "".join
)


def test_marks_near_each_other_share_a_passage_and_overlapping_ones_words() -> None:
    text = f"{'far away ' * 40}\fpaid 12 EUR by Ada, {'and so on ' * 40}no 77\ffee 3"
    at = {words: text.index(words) for words in ("12 EUR", "12", "Ada", "77", "3")}
    found = marked_passages(text, {words: Span(start, start + len(words)) for words, start in at.items()})
    assert [passage.page for passage in found] == [2, 2, 3]
    assert found[0].pieces[:4] == (
        Piece("paid "),
        Piece("12 EUR", ("12", "12 EUR")),
        Piece(" by "),
        Piece("Ada", ("Ada",)),
    )
    rest = found[0].pieces[4].text
    assert (rest[:8], rest[-4:]) == (", and so", "so …")
    assert found[1].pieces[0].text.startswith("… ")
    assert found[2].pieces == (Piece("fee "), Piece("3", ("3",)))


@pytest.mark.parametrize(
    ("text", "offset", "words"),
    [
        ("[EMAIL] a\ftotal 5", 6, "5"),
        ("a\ftotal 5 [PHONE]", 6, "5"),
        ("a\fto [NAME] 5", 10, None),
        ("a\fto [EMAIL]", 4, None),
        ("a\fto [x] 5", 7, "5"),
        ("a\ftotal", 6, None),
        ("a", 0, None),
    ],
)
def test_words_of_a_kept_text_are_told_where_no_placeholder_moved_them(
    text: str, offset: int, words: str | None
) -> None:
    span = kept_span(text, PagePlace(2, offset), 1)
    assert (span and text[slice(*span)]) == words


@given(TEXT, st.data())
def test_every_mark_is_shown_with_its_words_on_its_page(text: str, data: st.DataObject) -> None:
    marks = dict[str, Span]()
    for n in range(data.draw(st.integers(0, 6)) if text else 0):
        start = data.draw(st.integers(0, len(text) - 1))
        page_end = text.find(PAGE_BREAK, start) if PAGE_BREAK in text[start:] else len(text)
        if page_end > start:
            marks[str(n)] = Span(start, data.draw(st.integers(start + 1, page_end)))
    found = marked_passages(text, marks)
    shown = {name: (passage.page, piece.text) for passage in found for piece in passage.pieces for name in piece.names}
    assert shown.keys() == marks.keys()
    for name, (page, words) in shown.items():
        assert text[slice(*marks[name])] in words
        assert page == text.count(PAGE_BREAK, 0, marks[name].start) + 1
    for passage in found:
        pieces = [piece.text for piece in passage.pieces]
        whole = "".join(pieces).removeprefix("… ").removesuffix(" …")
        assert whole in text.split(PAGE_BREAK)[passage.page - 1]
        assert all(len(piece.text) <= 2 * AROUND for piece in passage.pieces if not piece.names)
