"""A log of two tasks and noise becomes a report and drafted folders."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.html_page import Page
from fixtures.traffic import SAYINGS, SORT, exchange, read_bookings, sorted_tickets

from smallfirst.base.stats.intervals import Estimate
from smallfirst.path.project.task_file import read_task_file
from smallfirst.traffic.discovery.discover import (
    Discovery,
    _verdict,
    discover,
    headline,
    month_factor,
    render_report,
    save_report,
)
from smallfirst.traffic.exchange import Exchange

PARTS = ("ri", "ver", "lamp", "sto", "ne", "qui", "et", "oran", "ge", "moun", "tain", "pa", "per", "win", "dow", "gar")


def open_requests(n: int, *, start: int = 0) -> list[Exchange]:
    """Return requests that share nothing, with answers in free text."""
    rng = random.Random(5)

    def said(k: int) -> str:
        return " ".join(rng.choice(PARTS) + rng.choice(PARTS) for _ in range(k))

    found = []
    for i in range(n):
        one = exchange(start + i, "", said(rng.randint(5, 12)), said(30))
        bare = {**one.request, "messages": one.request["messages"][1:]}
        found.append(one.model_copy(update={"request": bare}))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Discovery, Path]:
    out = tmp_path_factory.mktemp("found")
    log = [*sorted_tickets(700), *read_bookings(120, start=700), *open_requests(60, start=820)]
    log.append(exchange(5000, "s", "u", "x", route="/v1/embeddings"))
    return discover(log, out=out, sources=("log",), problems=["log:7  not JSON"]), out


def test_tasks_are_found_with_their_bill(found: tuple[Discovery, Path]) -> None:
    discovery, _ = found
    assert [(task.kind, task.n_requests) for task in discovery.tasks] == [("labels", 700), ("fields", 120)]
    assert [read_task_file(Path(task.folder)).kind for task in discovery.tasks] == ["classify", "extract"]
    assert discovery.n_exchanges == 881
    assert discovery.left_out == {"/v1/embeddings: no messages": 1}
    assert [(rest.what, rest.n_requests) for rest in discovery.rest] == [("open requests", 60)]
    assert discovery.cost_usd == pytest.approx(0.88)
    assert discovery.tasks[0].usd_per_month == discovery.tasks[0].cost_usd  # hours cannot be projected
    assert discovery.problems == ("log:7  not JSON",)
    assert discovery.n_drawn == 880
    half = discovery.model_copy(update={"n_drawn": 440, "cost_usd": 0.44})
    assert half.usd_per_month == pytest.approx(discovery.usd_per_month)  # what was drawn stands for all


def test_what_words_tell_can_move(found: tuple[Discovery, Path]) -> None:
    discovery, _ = found
    tickets = discovery.tasks[0]
    assert tickets.verdict == "moves"
    assert tickets.outlook.later.low > 0.5
    assert "when it is learnt" in tickets.why
    assert discovery.tasks[1].verdict == "unclear"
    assert "too few to foretell" in discovery.tasks[1].why
    assert discovery.moving.high <= 820 / 880
    assert discovery.moving.value == pytest.approx(tickets.n_requests * tickets.outlook.moves.value / 880, abs=1e-3)


def test_what_may_be_nothing_is_not_said_to_move(found: tuple[Discovery, Path]) -> None:
    outlook = found[0].tasks[0].outlook
    for low, verdict in ((0.0, "unclear"), (0.02, "moves")):
        share = Estimate(value=0.47, low=low, high=0.99, n=300)
        may = outlook.model_copy(update={"moves": share, "later": share})
        assert _verdict(SimpleNamespace(kind="labels"), {}, may, 0.05)[0] == verdict


def test_a_task_keeps_the_name_of_its_folder(tmp_path: Path) -> None:
    log = sorted_tickets(60)
    name = discover(log, out=tmp_path).tasks[0].name
    (tmp_path / name).rename(tmp_path / "tickets")
    assert discover(log, out=tmp_path).tasks[0].name == "tickets"


def test_noise_holds_no_task_that_moves() -> None:
    discovery = discover(open_requests(150))
    assert not [task for task in discovery.tasks if task.verdict == "moves"]
    assert discovery.moving.high == 0
    assert discover([]).tasks == ()


def test_answers_by_chance_do_not_move() -> None:
    rng = random.Random(0)
    log = [
        exchange(i, SORT, f"Message: {rng.choice(SAYINGS).format(f'thing {i}')}", rng.choice(("billing", "account")))
        for i in range(200)
    ]
    (task,) = discover(log, max_error=0.1).tasks
    assert task.verdict == "stays"
    assert task.folder == ""
    assert task.outlook.agreement.value < 0.65


# Figures and the report


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


def test_too_few_cases_are_no_verdict() -> None:
    assert headline(discover(sorted_tickets(60))) == "What of the bill can move cannot be told yet"


def test_without_prices_requests_are_counted() -> None:
    found = discover([one.model_copy(update={"cost_usd": None}) for one in sorted_tickets(150)], max_error=0.2)
    assert "of the requests can move" in headline(found)
    assert "no price" in Page(render_report(found)).words
