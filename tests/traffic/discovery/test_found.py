"""Figures of a discovery."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.html_page import Page
from fixtures.traffic import SORT, exchange, read_bookings, sorted_tickets

from smallfirst.traffic.discovery.discover import discover
from smallfirst.traffic.discovery.found import headline, month_factor, render_report, save_report


@pytest.mark.parametrize(("days", "factor"), [(30.44, 1.0), (3.044, 10.0), (0.5, 1.0), (0.0, 1.0)])
def test_only_days_are_projected(days: float, factor: float) -> None:
    assert month_factor(days) == pytest.approx(factor)


def test_the_report_names_tasks_bill_and_share(tmp_path: Path) -> None:
    found = discover([*sorted_tickets(150, frame='{"queue": "{}"}'), *read_bookings(40, start=150)], sources=("log",))
    read = Page(save_report(found, tmp_path / "report.html").read_text())
    assert not read.wrongly_closed
    assert not read.open
    assert not read.unscoped
    assert found.tasks[0].name in read.values("id")
    assert headline(found) in read.words
    assert "150 of 150 answers of this format are written again byte for byte" in read.words
    assert "Message: ⟨message⟩" in read.words
    assert not [value for value in read.values("href") + read.values("src") if not value.startswith("#")]


def test_texts_of_the_log_are_escaped() -> None:
    attack = "<script>alert(1)</script>"
    log = [exchange(i, SORT + attack, f"Message: {attack} {i}", ("billing", "account")[i % 2]) for i in range(60)]
    html = render_report(discover(log, problems=[attack]))
    assert attack not in html
    assert "&lt;script&gt;" in html


def test_a_format_that_does_not_come_back_is_shown() -> None:
    log = read_bookings(60)
    log[-1] = exchange(60, "Read the booking as JSON: name, people.", "a table", '{"name":"Bo","people":2}')
    words = Page(render_report(discover(log))).words
    assert 'recorded: {"name":"Bo","people":2}' in words
    assert 'written again: {"name": "Bo", "people": 2}' in words


def test_without_tasks_it_says_so() -> None:
    read = Page(render_report(discover([])))
    assert "No recurring task was found in this traffic" in read.words


def test_too_few_cases_are_no_verdict() -> None:
    assert headline(discover(sorted_tickets(60))) == "What of the bill can move cannot be told yet"


def test_without_prices_requests_are_counted() -> None:
    found = discover([one.model_copy(update={"cost_usd": None}) for one in sorted_tickets(150)], max_error=0.2)
    assert "of the requests can move" in headline(found)
    assert "no price" in Page(render_report(found)).words
