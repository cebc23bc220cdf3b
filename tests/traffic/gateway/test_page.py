"""The table of tasks adds up the ledger, and shows the same as lines, JSON and a page."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fixtures.dashboard import TASK, tickets_router
from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.gateway import run_gateway

from smallfirst.base.stats.intervals import wilson
from smallfirst.deployment.dashboard.plugin import HEADERS
from smallfirst.interfaces.cli.main import main
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow
from smallfirst.path.project.run_folder import FITTED, FittedCandidates, RunFolder
from smallfirst.traffic import task_source
from smallfirst.traffic.discovery.discover import Discovery, FoundTask
from smallfirst.traffic.discovery.outlook import Outlook, Share
from smallfirst.traffic.gateway.access import Access
from smallfirst.traffic.gateway.app import Gateway
from smallfirst.traffic.gateway.page import TaskLine, page_routes, task_lines
from smallfirst.traffic.gateway.tasks import TakenOverTasks
from smallfirst.traffic.settings import GatewaySettings
from smallfirst.traffic.task_source import SOURCE_FILE, AnswerFormat, TakeOver, TakeOvers, TaskSource

NOW = datetime.now(UTC)
WHY = "the upstream answers with another <model>"


def found_task(name, usd):
    return FoundTask(
        name=name,
        kind="labels",
        n_requests=100,
        n_cases=90,
        requests_per_month=300,
        cost_usd=usd / 3,
        usd_per_month=usd,
        models=("gpt-4o",),
        answered_by="gpt-4o-2024-08-06",
        first_at=NOW,
        last_at=NOW,
        wordings=(),
        answer="a label",
        format_check=None,
        repeats=wilson(1, 1),
        examples=(),
        outlook=Outlook(moves=Share(share=0.7, low=0.6, high=0.8)),
        verdict="moves",
        why="about 70 % can move",
    )


def save_source(folder, **teacher):
    source = TaskSource(
        name=folder.name,
        templates=(),
        answer_format=AnswerFormat(kind="label"),
        teacher=task_source.Teacher(model="gpt-4o-2024-08-06", **teacher),
    )
    folder.mkdir(parents=True)
    source.save(folder / SOURCE_FILE)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Ninety days of one live task, of which thirty count, one that has stepped back, and one that was only found."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    for name, teacher in (("tickets", {"licence": "MIT"}), ("mails", {}), ("notes", {"training_allowed": False})):
        save_source(tmp_path / "discovered" / name, **teacher)
    file = TakeOvers()
    file.put(TakeOver(task="tickets", folder=tmp_path / "discovered" / "tickets", promise="at most 5 % wrong"))
    file.put(file.get("tickets").moved("live", cause="person", why="taken over", share=0.5))
    file.put(TakeOver(task="mails", folder=tmp_path / "discovered" / "mails", share=1.0))
    file.put(file.get("mails").moved("stepped back", cause="model", why=WHY))
    ledger = Ledger(tmp_path / "state" / "ledger.db")
    rows = [row(i, "small" if i < 6 else "large", 0.0001 if i < 6 else 0.01) for i in range(10)]
    audit = AuditRow(
        id="0", at=NOW, task="tickets", certificate="c", propensity=0.1, wrong=False, judged_by="large", cost_usd=0.01
    )
    ledger.append(*rows, row(10, "small", 0.0, days=31), row(11, "large", 0.0, status=502), audit)
    ledger.close()
    values = {
        "sources": (),
        "made_at": NOW,
        "n_exchanges": 200,
        "left_out": {},
        "since": NOW,
        "until": NOW,
        "days": 1.0,
    }
    tasks = (found_task("tickets", 9.0), found_task("notes", 4.0))
    Discovery(**values, cost_usd=1.0, max_error=0.05, tasks=tasks, rest=()).save(
        tmp_path / "discovered" / "discovery.json"
    )
    return tmp_path


def row(i, stage, cost, *, days=0, status=200):
    at = NOW - timedelta(days=days)
    return LedgerRow(
        id=str(i), at=at, served_name="m", status=status, latency_ms=1, stage=stage, cost_usd=cost, task="tickets"
    )


def lines(state: Path) -> list[TaskLine]:
    with closing(Ledger(state / "state" / "ledger.db")) as ledger:
        return task_lines(TakeOvers(), ledger, state / "discovered")


def test_every_task_once_with_its_sums(state):
    notes, tickets, mails = lines(state)
    assert (tickets.state, tickets.share, tickets.requests, tickets.small_share) == ("live", 0.5, 10, 0.6)
    assert tickets.bill_usd == pytest.approx(6 * 0.0001 + 4 * 0.01 + 0.01)
    assert tickets.saved_usd == pytest.approx(6 * 0.01 - 6 * 0.0001 - 0.01)  # an audit is paid from it
    assert tickets.promise == "at most 5 % wrong"
    assert (mails.state, mails.requests, mails.small_share, mails.saved_usd, mails.why) == (
        "stepped back",
        0,
        None,
        None,
        WHY,
    )
    assert (notes.state, notes.requests, notes.bill_usd, notes.training_allowed) == ("found", 300, 4.0, False)


def test_before_the_large_model_was_billed_its_price_is_that_of_the_evaluation(state):
    (state / "state" / "ledger.db").unlink()
    ledger = Ledger(state / "state" / "ledger.db")
    ledger.append(row(1, "small", 0.0))
    ledger.close()
    run = RunFolder.new("tickets")
    FittedCandidates(ladder=(), mlflow_run_id="r").save(run.path / FITTED)
    run.save_evaluation(
        evaluation_of([evaluated_row(str(usd), "a", "a", cost_usd=usd) for usd in (0.02, 0.04)], candidate="large")
    )
    tickets = lines(state)[1]
    assert (tickets.task, tickets.saved_usd) == ("tickets", pytest.approx(0.03))


def test_the_verb_prints_it(state):
    run = CliRunner().invoke(main, ["tasks"])
    assert run.exit_code == 0
    heading, notes, tickets, _, why = run.output.splitlines()
    assert heading.split() == ["task", "requests", "bill", "state", "share", "small", "saved", "promise"]
    assert notes.split("  ")[0] == "notes"
    assert "found, measuring only" in notes
    assert "foretold 70%" in notes
    assert "live, 50% of requests" in tickets
    assert why == f"mails has stepped back: {WHY}"
    TakeOvers().update("tickets", lambda known: known.stepped_back("ada", "prompt", "another wording"))
    run = CliRunner().invoke(main, ["tasks"])
    assert "tickets has stepped back for ada alone: another wording" in run.output.splitlines()
    as_json = CliRunner().invoke(main, ["tasks", "--json"])
    assert [task["task"] for task in json.loads(as_json.output)["tasks"]] == ["notes", "tickets", "mails"]


def test_nothing_yet_names_the_next_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    run = CliRunner().invoke(main, ["tasks", str(tmp_path)])
    assert "smallfirst discover" in run.output
    assert not (tmp_path / "state").exists()


def test_the_proxy_has_a_page_of_its_tasks(chromium: Any, tmp_path: Path) -> None:
    ledger, store = Ledger(tmp_path / "ledger.db"), KeyStore(tmp_path / "keys.db")
    _, user = store.create("user", KeyPolicy())
    _, admin = store.create("admin", KeyPolicy(role="admin"))
    for index, stage in enumerate(("small", "small", "large")):
        given = {"id": str(index), "at": datetime.now(UTC), "served_name": "m", "status": 200, "latency_ms": 5.0}
        ledger.append(LedgerRow.model_validate({**given, "stage": stage, "task": TASK, "cost_usd": 0.01}))
    taken = TakeOver(task=TASK, folder=tmp_path / TASK, state="live", share=0.5, promise="at most 5 % wrong")
    taken = taken.stepped_back("ada", "prompt", "another <wording>")
    TakeOvers(tmp_path / "takeovers.json").put(taken)
    local = TakenOverTasks(ledger, TakeOvers(tmp_path / "takeovers.json"))
    routes = page_routes(ledger, local, tmp_path)
    settings = GatewaySettings.model_validate({"upstreams": {"main": {"base_url": "http://127.0.0.1:9/v1"}}})
    gateway = Gateway(settings, local=local, access=Access(store), routes=routes)
    listener = socket.create_server(("127.0.0.1", 0))
    with run_gateway(gateway, listener) as port:
        local.tasks[TASK] = SimpleNamespace(router=tickets_router(ledger), close=None)  # type: ignore[assignment]
        url = f"http://127.0.0.1:{port}"
        found = httpx.get(url)
        assert {name: found.headers[name] for name in HEADERS} == HEADERS
        codes = []
        for key in ("sf-none", user, admin):
            asked = {"authorization": f"Bearer {key}"}
            codes.append(httpx.get(f"{url}/v1/dashboard/session", headers=asked).status_code)
        assert codes == [401, 403, 200]
        page = chromium.new_page()
        page.goto(url)
        page.get_by_label("API key").fill(admin)
        page.keyboard.press("Enter")
        row = page.get_by_role("row", name=TASK)
        assert "live, 50 % of requests" in row.inner_text()
        assert "stepped back for ada alone: another <wording>" in row.inner_text()
        assert page.get_by_role("navigation").get_by_role("link").all_inner_texts() == ["Tasks", "Watch"]
        row.get_by_role("link").click()
        page.get_by_text("2 of 3 answers").wait_for()
        page.close()
        local.tasks.clear()
