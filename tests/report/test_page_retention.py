"""What the page says of general ability: one short passage under Training, and nothing where nothing was measured."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from smallfirst.evaluation.retention import Retention, RetentionByKind
from smallfirst.report import render
from smallfirst.report.page import ReportData
from smallfirst.report.text.advice import retention_sentences
from smallfirst.stats.intervals import Estimate, paired_difference, wilson

Make = Callable[..., ReportData]
FOUND = Retention(
    kept=Estimate(value=0.8, low=0.55, high=1.02, n=72),
    before=0.6,
    after=0.48,
    prompts="own.jsonl",
    right_before=wilson(51, 72),
    right_after=wilson(45, 72),
    difference=paired_difference([True] * 45 + [False] * 27, [True] * 51 + [False] * 21),
    parts=(
        RetentionByKind(kind="arithmetic", n=12, n_before=11, n_after=5),
        RetentionByKind(kind="<evil>", n=60, n_before=40, n_after=40),
    ),
)


def words(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_passage_gives_both_figures_their_difference_and_what_is_left(make_report: Make) -> None:
    page = render(make_report(retention=FOUND))
    seen = words(page)
    assert "What it can do beside the task" in seen
    # Wilson for 51 and 45 of 72.
    assert "Of 72 general questions (own.jsonl) the small model is right on 70.8 % (59.5 to 80.1) before" in seen
    assert "on 62.5 % (51.0 to 72.8) after: −8.3 points [" in seen
    assert "Of what it could do above guessing 80 % is left (55 to 102)." in seen
    assert "arithmetic 11 → 5 of 12, <evil> 40 → 40 of 60." in seen
    assert "<evil>" not in page
    assert '<a href="#training">' in page


def test_nothing_is_said_where_nothing_was_measured(make_report: Make) -> None:
    assert "What it can do beside the task" not in render(make_report())


def test_a_base_that_guesses_is_no_loss(make_report: Make) -> None:
    told = " ".join(retention_sentences(make_report(retention=FOUND.model_copy(update={"kept": None}))))
    assert "so there is nothing to keep" in told
    assert "is left" not in told
