"""The page of each kind of task: what must be on it, what must not, and that its figures are the records'."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from smallfirst.report import render
from smallfirst.report.data import ReportData
from smallfirst.report.findings import LearningPoint, Suspect
from smallfirst.report.formats import accurate, percent, usd
from smallfirst.stats.intervals import wilson

KINDS = ("classify", "extract", "answer", "chat")
ALWAYS = ("gate", "ladder", "routing", "confidence", "mistakes", "rows", "latency-section", "money", "training")
LAST = ("change", "how")
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
Samples = dict[str, ReportData]


class Page(HTMLParser):
    """Visible text, ids, and what screen readers and keyboards rely on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.unscoped: list[str] = []
        self.texts: list[str] = []
        self.tables_without_caption = 0
        self.silent = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag == "th" and "scope" not in given:
            self.unscoped.append(str(given))
        self.tables_without_caption += (tag == "table") - (tag == "caption")
        self.silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.silent = False

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.texts.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def plain(words: str) -> str:
    """Words with every space an ordinary one, as `Page.words` has them."""
    return re.sub(r"\s+", " ", words)


@pytest.fixture(scope="module")
def pages(samples: Samples) -> dict[str, str]:
    """The page of each kind."""
    return {kind: render(data) for kind, data in samples.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_there_and_the_page_is_small(kind: str, pages: dict[str, str]) -> None:
    page = Page(pages[kind])
    assert set(page.ids) >= {*ALWAYS, *LAST, "evidence", "verdict"}
    assert len(page.ids) == len(set(page.ids))
    assert len(pages[kind].encode()) < 400_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_keyboard_and_a_screen_reader_find_their_way(kind: str, pages: dict[str, str]) -> None:
    page = Page(pages[kind])
    assert 'class="skip" href="#evidence"' in pages[kind]
    assert (page.unscoped, page.tables_without_caption) == ([], 0)
    assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("nav") == 1
    # Whatever scrolls sideways can be reached and has a name of its own.
    regions = re.findall(r'<div class="wide" tabindex="0" role="region" aria-label="([^"]+)"', pages[kind])
    assert len(regions) == len(set(regions)) == pages[kind].count('class="wide"')


@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_show_the_figures_of_the_records(kind: str, pages: dict[str, str], samples: Samples) -> None:
    data, seen = samples[kind], Page(pages[kind]).words
    for candidate in ("small", "routed", "large"):
        found = data.evaluation(candidate)
        assert found is not None
        assert plain(percent(found.accuracy.value)) in seen
        monthly = found.cost_usd_per_1k * data.requests_per_month / 1000
        assert f"{usd(found.cost_usd_per_1k)} per 1,000 {usd(monthly)} a month" in seen
    large, small = data.evaluation("large"), data.evaluation("small")
    assert large is not None
    assert small is not None
    saved = (large.cost_usd_per_1k - small.cost_usd_per_1k) * data.requests_per_month / 1000
    assert f"saves {usd(saved)} a month" in seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_ladder_shows_every_candidate_with_n_interval_and_corrected_p(
    kind: str, pages: dict[str, str], samples: Samples
) -> None:
    seen = Page(pages[kind]).words
    for found in samples[kind].evaluations:
        assert f"{found.model} {found.accuracy.n} {found.accuracy}" in seen
        for estimate in found.measures.values():
            assert str(estimate) in seen
    assert "p (Holm)" in seen


@pytest.mark.parametrize(
    ("kind", "there", "absent"),
    [
        ("classify", ("Labels, the worst first", "Most confused pairs", "Right answer (down)"), ("fully right",)),
        ("extract", ("Fields, the worst first", "Confidence field by field", "fully right"), ("confused", "recall [")),
        ("answer", ("mistakes", "fully right", "said the harbour"), ("worst first", "confused")),
        ("chat", ("mistakes", "fully right", "An answer counts as right from a score of 0.6"), ("worst first",)),
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
    assert re.search(r"\d other fields are right, confidence", seen)


def test_a_question_stands_before_its_context(pages: dict[str, str]) -> None:
    first = pages["answer"].split('<ol class="cases"')[1]
    assert first.index("born?") < first.index("was born in")


@pytest.mark.parametrize("kind", KINDS)
def test_suspects_come_with_the_command_that_exports_them(kind: str, pages: dict[str, str]) -> None:
    assert f"smallfirst suspects {kind}.yaml --to suspects.csv" in Page(pages[kind]).words
    assert "12 more suspects" in Page(pages[kind]).words


def test_the_ceiling_and_leaks_are_said_in_words(pages: dict[str, str]) -> None:
    seen = Page(pages["classify"]).words
    assert plain(f"gives the same answer on {accurate(wilson(186, 200))} of 200 requests") in seen
    assert "1 of 400 test rows (0.2 %) are also in the training rows." in seen


@pytest.mark.parametrize("kind", KINDS)
def test_without_findings_the_page_is_whole_and_their_sections_are_gone(kind: str, samples: Samples) -> None:
    bare = samples[kind].model_copy(
        update={
            "evaluations": samples[kind].evaluations[:-2],
            "verdicts": (),
            "smallest_passing": None,
            "certificate": None,
            "promise_held": None,
            "training": None,
            "learning_curve": (),
            "suspects": (),
            "ceiling": None,
            "leaks": None,
            "list_prices": (),
            "probes_ms": {},
        }
    )
    page = Page(render(bare))
    assert not {"rows", "routing", "training"} & set(page.ids)
    assert set(re.findall(r'href="#([\w-]+)"', render(bare))) <= set(page.ids)
    assert "No gate was declared" in page.words
    assert "the large model was not measured" in page.words


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_are_shown_and_never_run(kind: str, samples: Samples) -> None:
    data = samples[kind]
    rows = tuple(
        row.model_copy(update={"text": EVIL, "answer": EVIL, "correct": False, "score": 0.0, "also": (EVIL,)})
        for row in data.evaluations[-3].rows
    )
    verdict = data.verdicts[0]
    line = verdict.checks[0].model_copy(update={"requirement": EVIL, "measured": EVIL, "advice": EVIL, "passed": False})
    hostile = data.model_copy(
        update={
            "title": EVIL,
            "task": EVIL,
            "evaluations": (data.evaluations[-3].model_copy(update={"rows": rows, "model": EVIL, "note": EVIL}),),
            "verdicts": (verdict.model_copy(update={"candidate": EVIL, "checks": (line,), "passed": False}),),
            "smallest_passing": None,
            "suspects": (Suspect(key="k", text=EVIL, gold=EVIL, said=EVIL, agrees=(EVIL,)),),
            "suspects_export": EVIL,
            "notes": (EVIL,),
        }
    )
    page = render(hostile)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert Page(page).words.count("alert(1)") >= 10


def test_a_name_in_a_chart_is_a_plain_word(samples: Samples) -> None:
    point = LearningPoint(10, EVIL, wilson(1, 2))
    with pytest.raises(ValueError, match="candidate names are plain words"):
        ReportData(**{**dict(samples["chat"]), "learning_curve": (point,)})


def test_thousands_of_long_rows_still_make_a_page_under_two_megabytes(
    samples: Samples,
) -> None:
    data = samples["classify"]
    small = data.evaluation("small")
    assert small is not None
    many = tuple(
        small.rows[i % 400].model_copy(
            update={"key": f"k{i}", "text": "<&> " * 3000, "gold": f"label_{i % 900}", "answer": None, "correct": False}
        )
        for i in range(9000)
    )
    long = small.model_copy(update={"rows": many, "parts": (), "measures": {}})
    page = render(data.model_copy(update={"evaluations": (long,), "comparisons": ()}))
    assert len(page.encode()) < 2_000_000
    assert "more characters" in page
