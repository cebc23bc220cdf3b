"""What a reader of the page sees, read back from the HTML: of a report of eight rows, and of each kind of task."""

import re
from pathlib import Path

import pytest
from fixtures.html_page import Page
from fixtures.report import DOMAIN_COUNTS, make_certificate, make_evaluation, make_report, make_verdict, outcome

from smallfirst.base.stats.intervals import wilson
from smallfirst.data.copies import Leak, LeakReport
from smallfirst.measuring.outcome import Outcome
from smallfirst.models.pricing import format_usd
from smallfirst.models.protocol import ValuePlace
from smallfirst.path.project.run_folder import GateVerdicts
from smallfirst.path.report.data import ReportData
from smallfirst.path.report.formats import percent
from smallfirst.path.report.page import render, save
from smallfirst.routing.certificate.certificate import NEVER_ACCEPT, GroupCertificate, RiskResult

KINDS = ("classify", "extract", "chat")
SECTIONS = "gate candidates routing confidence mistakes rows latency-section money change how evidence verdict"
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
Samples = dict[str, ReportData]


def words(data: ReportData) -> str:
    return Page(render(data)).words


def test_confidence_and_mistakes_are_those_of_the_recommended_candidate() -> None:
    encoder = make_evaluation("encoder", "cffffffc", cost_usd_per_1k=0.01, confidences=(0.9,) * 8)
    verdicts = (make_verdict("encoder", passed=True), make_verdict("small", passed=True))
    changes = {"evaluations": (encoder, *make_report().evaluations), "verdicts": verdicts}
    seen = words(make_report(**changes, winner="encoder"))
    assert "encoder on 8 test rows. Expected calibration error" in seen
    assert "encoder is wrong on 4 of 8 test rows." in seen
    # Who went live because task.yaml names it comes before the one that the rule chooses.
    assert "small is wrong on 1 of 8 test rows." in words(
        make_report(**changes, winner="encoder", outcome=outcome("small alone"))
    )
    # Where nothing passes, it is the one nearest to passing.
    near, far = (make_verdict(name, passed=False) for name in ("encoder", "small"))
    far = far.model_copy(update={"checks": far.checks * 2})
    failed = make_report(**(changes | {"verdicts": (far, near)}), winner=None)
    assert "encoder is wrong on 4 of 8 test rows." in words(failed)


def test_money_on_the_page_adds_up() -> None:
    seen = words(make_report())
    # 10,000 requests: large $20, small $0.50, routed $5.50 of which $0.50 per 1,000 is large.
    # $3.90 of training over $1.95 and $1.45 saved per 1,000 requests.
    assert "small $0.050 – $0.50 $19.50 2,000" in seen
    assert "routed $0.55 $0.50 $5.50 $14.50 2,690" in seen


def test_a_refused_certificate_says_why_and_guarantees_nothing() -> None:
    refused = make_certificate(issued=False, why="Too few labels: 300 more are needed.", threshold=1.1)
    without = {"promise": "", "share_promised": None, "watched_by": ""}
    seen = words(make_report(certificate=refused, outcome=outcome("small alone", **without)))
    assert "There is no promise about single answers" in seen
    assert "No certificate Too few labels: 300 more are needed." in seen
    assert "stay small and the rest goes" not in seen
    assert "At this threshold" in seen
    assert "✓ live, meets the requirements" in seen
    shadow = Outcome(kind="cannot be told yet", title="fine-tuned small model", alias="shadow", large=True)
    beside = words(make_report(certificate=refused, outcome=shadow))
    assert "does not go live" in beside
    assert "✓" not in beside.split("Gate")[0]


def test_what_is_guaranteed_and_what_happens_below_stand_in_tables() -> None:
    assert "What is guaranteed" not in words(make_report())  # an older certificate has no record of it
    label = {"threshold": 0.8, "n_accepted": 60, "n_errors": 0, "error_bound": 0.09, "labels_missing": None}
    certificate = make_certificate(
        risks=(RiskResult(risk="error", limit=0.1, value=0.0143, bound=0.066, n=70),),
        thresholds={"words": 0.9, "small": 0.8},
        groups=(
            GroupCertificate(label="fee", **label),
            GroupCertificate(label="<b>", **(label | {"threshold": NEVER_ACCEPT, "labels_missing": 34})),
        ),
        rests_on=("it speaks of requests drawn like its rows",),
    )
    page = render(make_report(certificate=certificate))
    seen = Page(page).words
    assert "at most 10 % of kept answers wrong 0.0143 0.066 70" in seen
    assert "words is kept from a confidence of 0.900, the last draft is kept from a confidence of 0.800." in seen
    assert "By label: 1 of 2 labels hold the guarantee on their own" in seen
    assert "&lt;b&gt;" in page
    assert "It speaks of requests drawn like its rows." in seen


def test_requests_outside_the_task_are_counted() -> None:
    seen = words(make_report(domain=DOMAIN_COUNTS))
    for line in DOMAIN_COUNTS.in_words:
        assert " ".join(line.split()[1:]) in seen


def test_a_page_can_be_made_again_from_the_stored_record(tmp_path: Path) -> None:
    page = save(make_report(), tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    stored = make_report().save(tmp_path / "report.json")
    assert render(ReportData.load(stored)) == page


def test_what_refuses_a_part_of_the_requests_is_the_path_that_is_live() -> None:
    refusing = outcome("small alone", share_small=wilson(7, 8), rest="refused", promise="", share_promised=None)
    data = make_report(outcome=refusing, certificate=None)
    assert data.evaluation("routed") is not None
    page = render(data)
    (live,) = re.findall(r'<li class="card chosen">(.*?)</li>', page, flags=re.DOTALL)
    assert "With a domain check" in live
    assert "live" in live
    assert "the large one the rest" not in page.lower().partition('<ul class="cards"')[2].partition("</ul>")[0]


def test_what_answers_is_compared_with_the_large_model() -> None:
    # Routed and large are right on the same rows: 1.96 · sqrt(1 / 10 / 10) = 0.196 (Agresti and Min).
    same = "No difference from the large model in right answers was found (+0.0 points [−19.6, +19.6])."
    assert same in words(make_report(outcome=outcome()))
    small = make_evaluation("small", "ccccffff", cost_usd_per_1k=0.05)
    large = make_evaluation("large", "ffffcccc", cost_usd_per_1k=2.0)
    gain = words(make_report(evaluations=(small, large), outcome=outcome("small alone")))
    assert "“fine-tuned small model” is right more often than the large model, by +100.0 points" in gain


def test_what_to_know_before_trusting_the_figures_stands_beside_them() -> None:
    assert "Before you trust" not in words(make_report())
    small, large, _ = make_report().evaluations
    other = large.model_copy(update={"dataset_fingerprint": "other", "split": "calibration"})
    signed = make_verdict("small", passed=False).model_copy(
        update={"passed": True, "signed_by": "Ada", "because": "pilot", "signed_at": "2026-11-25T09:00:00Z"}
    )
    seen = words(make_report(evaluations=(small, other), verdicts=(signed,)))
    assert "The paths were not all measured on the same rows; compare them with care." in seen
    assert "Not measured on test rows: large." in seen
    assert "“fine-tuned small model” passed by a signed override, not by measurement: Ada, because “pilot”." in seen


def test_leaks_are_counted_and_warned_of_where_too_few_other_rows_are_left() -> None:
    def leaks(n: int, *keys: str) -> LeakReport:
        found = tuple(Leak(key=key, test="test.jsonl:1", train="train.jsonl:9") for key in keys)
        return LeakReport(n_test=n, test_fingerprint="f", leaks=found)

    # 7 of 8 right; without row 0, which was right, 6 of 7.
    seen = words(make_report(leaks=leaks(8, "row0")))
    assert "1 of 8 test rows (12.5 %) are also in the training rows; the gate judges the others." in seen
    assert "on 87.5 % (52.9 to 97.8) with them and on 85.7 %" in seen
    assert "Before you trust" not in seen
    keys = [f"row{i}" for i in range(951)]
    assert "Too few" not in words(make_report(leaks=leaks(1000, *keys[:950])))
    assert "Too few other rows are left to judge by: 49." in words(make_report(leaks=leaks(1000, *keys)))
    assert "None of the 9 test rows" in words(make_report(leaks=leaks(9)))


def plain(words: str) -> str:
    """Words with every space an ordinary one, as `Page.words` has them."""
    return re.sub(r"\s+", " ", words)


@pytest.fixture(scope="module")
def pages(samples: Samples) -> dict[str, str]:
    return {kind: render(data) for kind, data in samples.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_there_and_keyboards_and_screen_readers_find_it(kind: str, pages: dict[str, str]) -> None:
    page = Page(pages[kind])
    ids = page.values("id")
    assert set(ids) >= set(SECTIONS.split())
    assert (page.open, page.wrongly_closed) == ([], [])
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert not [found for found in ("http://", "https://", "url(") if found in pages[kind]]
    assert "default-src 'none'" in pages[kind]
    assert {part for value in page.values("aria-labelledby") for part in value.split()} <= set(ids)
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
    assert data.review_command in seen
    for found in data.evaluations:
        assert f"{found.model} {found.accuracy.n} {found.accuracy}" in seen
        assert [estimate for estimate in found.measures.values() if str(estimate) not in seen] == []
        if found.candidate in ("small", "routed", "large"):
            monthly = found.cost_usd_per_1k * data.requests_per_month / 1000
            assert plain(percent(found.accuracy.value)) in seen
            assert f"{format_usd(found.cost_usd_per_1k)} per 1,000 {format_usd(monthly)} a month" in seen


@pytest.mark.parametrize(
    ("kind", "there", "absent"),
    [
        ("classify", ("Labels, the worst first",), ("field by field",)),
        ("extract", ("Fields, the worst first", "field by field"), ("recall [",)),
        ("chat", ("mistakes", "score 0."), ("worst first",)),
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


@pytest.mark.parametrize("kind", KINDS)
def test_without_findings_the_page_is_whole_and_their_sections_are_gone(kind: str, samples: Samples) -> None:
    data = samples[kind]
    empty = ("gate", "certificate", "training_usd")
    fields = {name: getattr(data, name) for name in ReportData.model_fields if name not in empty}
    fields |= {"evaluations": data.evaluations[:-2], "leaks": None}
    bare = render(ReportData(**fields))
    page = Page(bare)
    assert not {"rows", "routing"} & set(page.values("id"))
    assert {link.removeprefix("#") for link in page.values("href")} <= set(page.values("id"))
    assert "No gate was declared" in page.words
    assert "the large model was not measured" in page.words


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_are_shown_and_never_run(kind: str, samples: Samples) -> None:
    data = samples[kind]
    changes = {"text": EVIL, "answer": EVIL, "correct": False, "score": 0.0, "also": (EVIL,)}
    rows = tuple(row.model_copy(update=changes) for row in data.evaluations[-3].rows)
    verdict = data.gate.verdicts[0]
    check = verdict.checks[0].model_copy(update={"requirement": EVIL, "measured": EVIL, "advice": EVIL})
    hostile = data.model_copy(
        update={
            "title": EVIL,
            "task": EVIL,
            "evaluations": (data.evaluations[-3].model_copy(update={"rows": rows, "model": EVIL, "note": EVIL}),),
            "gate": GateVerdicts(
                verdicts=(verdict.model_copy(update={"candidate": EVIL, "checks": (check,), "passed": False}),),
                winner=None,
            ),
            "review_command": EVIL,
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


def test_a_document_is_shown_by_what_was_read_and_where(samples: Samples) -> None:
    data = samples["extract"]
    text = f"{'so on ' * 200}{EVIL}\fGuest Ada {EVIL} of Porto.\f{EVIL} {'and on ' * 200} cot, bed for 3 nights"
    gold = '{"guest": {"name": "Ada", "city": "Lyon"}, "nights": 3, "extras": ["cot", "tea"], "note": "a"}'
    said = '{"guest": {"name": "Ada", "city": "Porto"}, "nights": 3, "extras": ["cot", "bed"]}'
    marks = {"guest.name": "Ada", "guest.city": "Porto", "extras[0]": "cot", "extras[1]": "bed"}
    read = {
        path: ValuePlace(message=0, role="user", start=text.index(w), end=text.index(w) + len(w), page=2, words=w)
        for path, w in marks.items()
    }
    row = data.focus.rows[0].model_copy(update={"text": text, "gold": gold, "read": read, "also": ()})
    wrong = row.model_copy(
        update={"answer": said, "correct": False, "wrong_fields": ("guest", "extras", "note"), "confidence": 0.9}
    )
    right = row.model_copy(update={"answer": gold, "correct": True, "wrong_fields": (), "key": "other"})
    rows = (right.model_copy(update={"read": {}}), wrong.model_copy(update={"confidence": 0.1}), wrong, right)
    focus = data.focus.model_copy(update={"rows": rows})
    page = render(data.model_copy(update={"evaluations": (focus,)}))
    section = page[page.index('<section id="documents"') : page.index('<section id="mistakes"')]
    assert "<script" not in section
    assert "<img" not in section
    assert "on on on" not in (seen := Page(section).words)
    assert len(seen) < 2600  # of two documents of 2,800 characters each
    assert "A mistake, confidence 0.90 page 2 Guest Ada guest. name ✓ right" in seen
    for told in ("Porto guest. city ✗ wrong", "cot extras[0] ✓ right", "bed extras[1] ✗ wrong"):
        assert told in seen
    assert "note missing right: a" in seen
    assert "Read nowhere, written by a language model: nights" in seen
    assert "A right answer" in seen
    assert "missing" not in seen.split("A right answer")[1]


def test_an_answer_in_words_is_marked_in_its_context(samples: Samples) -> None:
    data = samples["extract"]
    text = f"{'so on ' * 200}Open till six.\n\nwhen?"
    place = ValuePlace(message=0, role="user", start=text.index("six"), end=text.index("six.") + 3, page=1, words="six")
    row = data.focus.rows[0].model_copy(
        update={"text": text, "gold": "9", "answer": "six", "correct": False, "wrong_fields": None, "also": ()}
    )
    focus = data.focus.model_copy(update={"rows": (row.model_copy(update={"read": {"answer": place}}),)})
    page = render(data.model_copy(update={"evaluations": (focus,)}))
    section = page[page.index('<section id="documents"') : page.index('<section id="mistakes"')]
    assert "six answer ✗ wrong" in Page(section).words


def test_thousands_of_long_rows_still_make_a_page_under_two_megabytes(samples: Samples) -> None:
    data = samples["classify"]
    small = data.evaluation("small")
    many = tuple(
        small.rows[i % 400].model_copy(
            update={"key": f"k{i}", "text": "<&> " * 1000, "gold": f"label_{i % 900}", "answer": None, "correct": False}
        )
        for i in range(2000)
    )
    parts = tuple(small.parts[0].model_copy(update={"name": f"label_{i}"}) for i in range(900))
    long = small.model_copy(update={"rows": many, "parts": parts, "measures": {}})
    page = render(data.model_copy(update={"evaluations": (long,)}))
    assert len(page.encode()) < 2_000_000
    assert "&gt; …" in page
