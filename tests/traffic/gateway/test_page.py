"""The table of tasks adds up the ledger, and shows the same as lines, JSON and a page."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fixtures.dashboard import TASK, tickets_router
from fixtures.gateway import run_gateway
from fixtures.takeover import source
from fixtures.traffic import sorted_tickets

from smallfirst.deployment.dashboard.plugin import HEADERS
from smallfirst.interfaces.cli.main import main
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow
from smallfirst.measuring.data_issues import DataIssue
from smallfirst.path.project.settlements import settle
from smallfirst.traffic.discovery.discover import discover
from smallfirst.traffic.gateway.access import Access
from smallfirst.traffic.gateway.app import Gateway
from smallfirst.traffic.gateway.draft_watch import DraftWatch
from smallfirst.traffic.gateway.page import page_routes, read_task_table, task_routes
from smallfirst.traffic.gateway.tasks import TakenOverTasks
from smallfirst.traffic.settings import GatewaySettings
from smallfirst.traffic.task_source import SOURCE_FILE, TakeOver, TakeOvers, Teacher

NOW = datetime.now(UTC)
WHY = "the upstream answers with another <model>"
ISSUE = DataIssue(kind="versions", what="1 label has another", n=30, of=150, keys=("k",), names={"billing": "<money>"})


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Ninety days of one live task, of which thirty count, one that has stepped back, and one that was only found."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    folder = tmp_path / "discovered"
    found = discover(sorted_tickets(150), out=folder, teacher_of=lambda m, *_: Teacher(model=m, training_allowed=False))
    (task,) = found.tasks
    found.model_copy(update={"tasks": (task.model_copy(update={"issues": (ISSUE,)}),)}).save(folder / "discovery.json")
    source().save(folder / SOURCE_FILE)
    file = TakeOvers()
    file.put(TakeOver(task="tickets", folder=folder, promise="at most 5 % wrong"))
    file.put(file.get("tickets").moved("live", cause="person", why="taken over", share=0.5))
    file.put(TakeOver(task="mails", folder=folder, share=1.0))
    file.put(file.get("mails").moved("stepped back", cause="model", why=WHY))
    ledger = Ledger(tmp_path / "state" / "ledger.db")
    rows = [row(i, "small" if i < 6 else "large", 0.0001 if i < 6 else 0.01) for i in range(10)]
    audit = AuditRow(
        id="0", at=NOW, task="tickets", certificate="c", propensity=0.1, wrong=False, judged_by="large", cost_usd=0.01
    )
    ledger.append(*rows, row(10, "small", 0.0, days=31), row(11, "large", 0.0, status=502), audit)
    ledger.close()
    return tmp_path


def row(i, stage, cost, *, days=0, status=200):
    at = NOW - timedelta(days=days)
    return LedgerRow(
        id=str(i), at=at, served_name="m", status=status, latency_ms=1, stage=stage, cost_usd=cost, task="tickets"
    )


def test_every_task_once_with_its_sums(state):
    notes, tickets, mails = read_task_table(state / "state", state / "discovered").tasks
    assert (tickets.state, tickets.share, tickets.requests, tickets.small_share) == ("live", 0.5, 10, 0.6)
    assert tickets.bill_usd == pytest.approx(6 * 0.0001 + 4 * 0.01 + 0.01)
    assert tickets.saved_usd == pytest.approx(6 * 0.01 - 6 * 0.0001 - 0.01)  # an audit is paid from it
    assert tickets.promise == "at most 5 % wrong"
    assert (mails.state, mails.requests, mails.small_share) == ("stepped back", 0, None)
    assert (mails.saved_usd, mails.why) == (None, WHY)
    assert (notes.task, notes.state, notes.requests) == ("sort-customer", "found", 150)
    assert (notes.bill_usd, notes.training_allowed) == (pytest.approx(0.15), False)
    assert [one["cost"] for one in notes.issues] == [ISSUE.cost]
    settle(state / "discovered" / "sort-customer", ISSUE, "map", labels=True)
    assert not read_task_table(state / "state", state / "discovered").tasks[0].issues
    TakeOvers().put(TakeOver(task="sort-customer", folder=state))
    assert "found" not in [line.state for line in read_task_table(state / "state", state).tasks]


def test_the_verb_prints_it(state):
    run = CliRunner().invoke(main, ["tasks"])
    assert run.exit_code == 0
    heading, notes, tickets, _, why = run.output.splitlines()
    assert heading.split() == ["task", "requests", "bill", "state", "share", "small", "saved", "promise"]
    assert notes.split("  ")[0] == "sort-customer"
    assert "found, measuring only" in notes
    assert "foretold" in notes
    assert "150 a month" in notes
    assert "live, 50% of requests" in tickets
    assert why == f"mails has stepped back: {WHY}"
    watch, _ = DraftWatch().add([True] * 3, NOW.timestamp())
    kept = Ledger(state / "state" / "ledger.db")
    kept.shared.replace("drafts/tickets//ada", lambda known, now_s: (watch.model_dump(mode="json"), None))
    kept.close()
    learning = next(line for line in CliRunner().invoke(main, ["tasks"]).output.splitlines() if "learnt until" in line)
    assert learning.startswith("tickets: how often drafts that are not sure enough usually differ is learnt until 20")
    TakeOvers().update(
        "tickets", lambda known: known.stepped_back("ada", "prompt", "another wording", one_tenant=False)
    )
    run = CliRunner().invoke(main, ["tasks"])
    assert "tickets has stepped back for ada alone: another wording" in run.output.splitlines()
    as_json = CliRunner().invoke(main, ["tasks", "--json"])
    assert [task["task"] for task in json.loads(as_json.output)["tasks"]] == ["sort-customer", "tickets", "mails"]


def test_the_proxy_has_a_page_of_its_tasks(chromium: Any, state: Path) -> None:
    ledger, store = Ledger(state / "ledger.db"), KeyStore(state / "keys.db")
    _, user = store.create("user", KeyPolicy())
    _, admin = store.create("admin", KeyPolicy(role="admin"))
    for index, stage in enumerate(("small", "small", "large")):
        given = {"id": str(index), "at": datetime.now(UTC), "served_name": "m", "status": 200, "latency_ms": 5.0}
        ledger.append(LedgerRow.model_validate({**given, "stage": stage, "task": TASK, "cost_usd": 0.01}))
    folder = state / "discovered" / "sort-customer"
    taken = TakeOver(task=TASK, folder=folder, state="live", share=0.5, promise="at most 5 % wrong")
    taken = taken.stepped_back("ada", "prompt", "another <wording>", one_tenant=False)
    TakeOvers(state / "takeovers.json").put(taken)
    local = TakenOverTasks(ledger, TakeOvers(state / "none.json"))
    routes = {**task_routes(state, state), **page_routes(ledger, local)}
    settings = GatewaySettings.model_validate({"upstreams": {"main": {"base_url": "http://127.0.0.1:9/v1"}}})
    gateway = Gateway(settings, local=local, access=Access(store), routes=routes)
    with run_gateway(gateway) as port:
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
        wrong = page.get_by_role("listitem").inner_text()
        assert wrong.startswith("1 label has another: 30 of 150 rows, 20.0 %\n\nbilling → <money>\n\na model that")
        assert page.get_by_text(f"smallfirst review {folder}").is_visible()
        row.get_by_role("link").click()
        page.get_by_text("2 of 3 answers").wait_for()
        page.close()
        local.tasks.clear()
