"""Of a document the passages that hold values are read, and every value has its page, offset and words."""

import json
import random

import pytest

from smallfirst.data.dataset import Example, Message
from smallfirst.data.pages import PAGE_BREAK, SCANNED, has_scanned_page, passages
from smallfirst.measuring.evaluate import score_row
from smallfirst.models.protocol import Completion
from smallfirst.models.spans.passages import EXCERPT_WORDS, Excerpt, ReadRows, learn_reading
from smallfirst.tasks.extract import Extract

SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}, "city": {"type": "string"}}}
WORDS = [
    "the",
    "of",
    "and",
    "river",
    "1,204",
    "house",
    "88.20",
    "was",
    "long",
    "19",
    "tree",
    "in",
    "old",
    "3",
    "by",
    "it",
    "on",
    "a",
]
CITIES = ("Bern", "Rome", "Oslo", "Lima")


def document(draw: random.Random, total: float, city: str, n_pages: int = 6) -> str:
    pages = [" ".join(draw.choices(WORDS, k=200)) for _ in range(n_pages)]
    first, last = sorted(draw.sample(range(n_pages), 2))
    pages[first] += f"\nsent from our branch in {city}\n" + " ".join(draw.choices(WORDS, k=70))
    pages[last] = f"amount due: {total:,.2f} EUR\n{pages[last]}"
    return PAGE_BREAK.join(pages)


@pytest.fixture(scope="module")
def learnt() -> ReadRows:
    draw, rows = random.Random(1), []
    for n in range(40):
        total, city = 100 + n + n / 100, draw.choice(CITIES)
        asked = Message(role="user", content=document(draw, total, city))
        gold = json.dumps({"total": total, "city": city})
        rows.append(Example(messages=(asked,), answer=gold, shape="target"))
    return learn_reading(Extract(name="bills", json_schema=SCHEMA), rows)


def test_the_passages_with_values_are_read_and_a_place_in_them_is_one_in_the_document(learnt: ReadRows) -> None:
    assert learnt.ranker is not None
    assert [field.how for field in learnt.plan.fields] == ["span", "span"]
    draw = random.Random(2)
    text = document(draw, 977.5, "Oslo", n_pages=30)
    found = learnt.ranker.excerpt(text)
    assert len(found.text.split()) <= EXCERPT_WORDS < 5_000 < len(text.split())
    for words in ("amount due: 977.50 EUR", "in Oslo"):
        start = found.text.index(words)
        place = found.place(start - 1, start + len(words) + 1)
        assert place is not None
        page = text.split(PAGE_BREAK)[place.page - 1]
        assert page[place.offset : place.offset + len(words)] == text[place.start : place.end] == place.words == words
    ends = [own.end for _, own in found.pieces]
    assert found.place(ends[0] - 30, ends[0] + 30) is None  # words of two pieces stand nowhere
    assert learnt.ranker.excerpt("in Oslo").text == "in Oslo"  # a short text is read as a whole


def test_a_measured_document_keeps_the_page_and_words_of_each_value_for_the_report() -> None:
    asked = (Message(role="user", content="a letter\ftotal: 5"),)
    place = Excerpt(asked[0].content, asked[0].content).place(16, 17)
    said = Completion(text='{"total": 5}', answered_by="m", latency_ms=1, cost_usd=0, read={"total": place})
    example = Example(messages=asked, answer='{"total": 5}', shape="target")
    assert score_row(example, said, Extract(name="bills", json_schema=SCHEMA), "m").read == {"total": place}


def test_passages_hold_every_word_once_and_none_is_of_two_pages() -> None:
    text = document(random.Random(3), 5.0, "Lima")
    own = passages(text)
    assert " ".join(text[a:b] for a, b in own).split() == text.split()
    assert not any(PAGE_BREAK in text[a:b] for a, b in own)
    assert Excerpt("a\fb", "a\fb").place(0, 3) is None
    assert has_scanned_page(f"one\f{SCANNED}\n")
    assert not has_scanned_page(f"not a {SCANNED}")
