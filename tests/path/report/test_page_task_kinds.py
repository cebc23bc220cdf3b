"""The page of each kind of task: what must be on it, what must not, and that its figures are the records'."""

from __future__ import annotations

import re

import pytest
from fixtures.html_page import Page

from smallfirst.models.pricing.charge import format_usd
from smallfirst.path.report.data import ReportData
from smallfirst.path.report.formats import percent
from smallfirst.path.report.page import render

KINDS = ("classify", "extract", "answer", "chat")
SECTIONS = "gate candidates routing confidence mistakes rows latency-section money training change how evidence verdict"
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
Samples = dict[str, ReportData]


def plain(words: str) -> str:
    """Words with every space an ordinary one, as `Page.words` has them."""
    return re.sub(r"\s+", " ", words)


@pytest.fixture(scope="module")
def pages(samples: Samples) -> dict[str, str]:
    """The page of each kind."""
    return {kind: render(data) for kind, data in samples.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_there_and_keyboards_and_screen_readers_find_it(kind: str, pages: dict[str, str]) -> None:
    page = Page(pages[kind])
    ids = page.values("id")
    assert set(ids) >= set(SECTIONS.split())
    assert len(ids) == len(set(ids))
    assert len(pages[kind].encode()) < 400_000
    assert 'class="skip" href="#evidence"' in pages[kind]
    assert page.unscoped == []
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("nav") == 1
    # Whatever scrolls sideways can be reached and has a name of its own.
    regions = re.findall(r'<div class="wide" tabindex="0" role="region" aria-label="([^"]+)"', pages[kind])
    assert len(regions) == len(set(regions)) == pages[kind].count('class="wide"')


@pytest.mark.parametrize("kind", KINDS)
def test_cards_and_table_show_the_figures_of_the_records(kind: str, pages: dict[str, str], samples: Samples) -> None:
    data, seen = samples[kind], Page(pages[kind]).words
    for found in data.evaluations:
        assert f"{found.model} {found.accuracy.n} {found.accuracy}" in seen
        assert [estimate for estimate in found.measures.values() if str(estimate) not in seen] == []
        if found.candidate in ("small", "routed", "large"):
            monthly = found.cost_usd_per_1k * data.requests_per_month / 1000
            assert plain(percent(found.accuracy.value)) in seen
            assert f"{format_usd(found.cost_usd_per_1k)} per 1,000 {format_usd(monthly)} a month" in seen
    assert "p (Holm)" in seen


@pytest.mark.parametrize(
    ("kind", "there", "absent"),
    [
        ("classify", ("Labels, the worst first", "Most confused pairs"), ("field by field",)),
        ("extract", ("Fields, the worst first", "field by field"), ("confused", "recall [")),
        ("answer", ("mistakes", "said the harbour"), ("worst first", "confused")),
        ("chat", ("mistakes", "score 0."), ("worst first", "confused")),
    ],
)
def test_mistakes_are_shown_as_the_kind_needs_it(
    kind: str, there: tuple[str, ...], absent: tuple[str, ...], pages: dict[str, str]
) -> None:
    seen = Page(pages[kind]).words
    assert [words for words in there if words not in seen] == []
    assert [words for words in absent if words in seen] == []


def test_a_wrong_json_answer_says_what_differs_field_by_field(pages: dict[str, str]) -> None:
    seen = Page(pages["extract"]).words
    assert re.search(r"nights wrong right: 5 said: 6", seen)
    assert re.search(r"price\. amount missing right: \d+", seen)
    assert re.search(r"price\. amount invented said: 80", seen)
    assert "The other fields are right, confidence" in seen


def test_a_question_stands_before_its_context(pages: dict[str, str]) -> None:
    first = pages["answer"].split('<ol class="cases"')[1]
    assert first.index("born?") < first.index("was born in")


@pytest.mark.parametrize("kind", KINDS)
def test_suspects_leaks_and_the_large_models_agreement_are_told(kind: str, pages: dict[str, str]) -> None:
    seen = Page(pages[kind]).words
    assert f"smallfirst review {kind}.yaml --labels suspects.jsonl" in seen
    assert "12 more suspects" in seen
    assert "the large model gives the same answer on 0.930 [0.886, 0.958] of 200 rows" in seen
    assert "1 of 400 test rows (0.2 %) are also in the training rows; the gate judges the others." in seen


@pytest.mark.parametrize("kind", KINDS)
def test_without_findings_the_page_is_whole_and_their_sections_are_gone(kind: str, samples: Samples) -> None:
    data = samples[kind]
    empty = ("verdicts", "smallest_passing", "certificate", "training", "learning_curve", "suspects")
    fields = {name: getattr(data, name) for name in ReportData.model_fields if name not in empty}
    fields |= {"evaluations": data.evaluations[:-2], "self_agreement": None, "leaks": None}
    bare = render(ReportData(**fields))
    page = Page(bare)
    assert not {"rows", "routing", "training"} & set(page.values("id"))
    assert {link.removeprefix("#") for link in page.values("href")} <= set(page.values("id"))
    assert "No gate was declared" in page.words
    assert "the large model was not measured" in page.words


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_are_shown_and_never_run(kind: str, samples: Samples) -> None:
    data = samples[kind]
    changes = {"text": EVIL, "answer": EVIL, "correct": False, "score": 0.0, "also": (EVIL,)}
    rows = tuple(row.model_copy(update=changes) for row in data.evaluations[-3].rows)
    verdict = data.verdicts[0]
    check = verdict.checks[0].model_copy(update={"requirement": EVIL, "measured": EVIL, "advice": EVIL})
    hostile = data.model_copy(
        update={
            "title": EVIL,
            "task": EVIL,
            "evaluations": (data.evaluations[-3].model_copy(update={"rows": rows, "model": EVIL, "note": EVIL}),),
            "verdicts": (verdict.model_copy(update={"candidate": EVIL, "checks": (check,), "passed": False}),),
            "smallest_passing": None,
            "suspects": (data.suspects[0].model_copy(update={"text": EVIL, "gold": EVIL, "said": EVIL}),),
            "suspects_export": EVIL,
            "notes": (EVIL,),
            "versions": {EVIL: EVIL},
            "certificate": data.certificate and data.certificate.model_copy(update={"why": EVIL}),
        }
    )
    page = render(hostile)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "onerror" not in {name for name, _ in Page(page).attributes}
    assert Page(page).words.count("alert(1)") >= 10


def test_thousands_of_long_rows_still_make_a_page_under_two_megabytes(samples: Samples) -> None:
    data = samples["classify"]
    small = data.evaluation("small")
    assert small is not None
    many = tuple(
        small.rows[i % 400].model_copy(
            update={"key": f"k{i}", "text": "<&> " * 3000, "gold": f"label_{i % 900}", "answer": None, "correct": False}
        )
        for i in range(9000)
    )
    parts = tuple(small.parts[0].model_copy(update={"name": f"label_{i}"}) for i in range(900))
    long = small.model_copy(update={"rows": many, "parts": parts, "measures": {}})
    page = render(data.model_copy(update={"evaluations": (long,)}))
    assert len(page.encode()) < 2_000_000
    assert "&gt; …" in page
