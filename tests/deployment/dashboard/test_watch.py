"""The figures of the page against a ledger that was added up by hand, and an alarm as a reader sees it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.certificates import certificate
from fixtures.dashboard import DashboardServer, SmallModel, large_model
from fixtures.waiting import until

from smallfirst.base.stats.intervals import wilson
from smallfirst.deployment.billing.saved import machine_costs, savings
from smallfirst.deployment.dashboard.watch import Window, covered_before, watch
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, ExpenseRow, FeedbackRow, LedgerRow
from smallfirst.models.pricing import Charge, PriceBook
from smallfirst.routing.policies import Policy, RulePolicy
from smallfirst.routing.router import Router, RouterOptions

NOON = datetime(2026, 11, 27, 12, 20, tzinfo=UTC)


def answer(id: str, hours_ago: float, stage: str | None, usd: float, **values: Any) -> LedgerRow:
    charges = [Charge(model="m", usd=usd, basis="tokens").model_dump(mode="json")]
    given = {"id": id, "at": NOON - timedelta(hours=hours_ago), "served_name": "tickets", "status": 200}
    given |= {"latency_ms": 100.0, "task": "tickets", "stage": stage, "certified": stage == "small"}
    return LedgerRow.model_validate({**given, "cost_usd": usd, "charges": json.dumps(charges), **values})


def audit(id: str, hours_ago: float, *, wrong: bool, **values: Any) -> AuditRow:
    given = {"id": id, "at": NOON - timedelta(hours=hours_ago), "task": "tickets", "certificate": "c"}
    return AuditRow.model_validate({**given, "propensity": 0.5, "wrong": wrong, "judged_by": "large", **values})


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    made = Ledger(tmp_path / "ledger.db")
    for index in range(6):
        given = {"latency_ms": 10.0 if index < 5 else 1000.0, "audited": index < 4}
        made.append(answer(f"small-{index}", 1, "small", 0.001, **given))
    made.append(
        answer("large-0", 1, "large", 0.02),
        answer("large-1", 26, "large", 0.02),
        answer("person", 1, "person", 0.001),
        answer("old", 24 * 31, "small", 5.0),
        answer("plain", 1, "echo", 0.25, task=None, served_name="echo"),
        answer("other", 1, "small", 0.001, task="invoices"),
        answer("failed", 1, None, 0.0, status=502, charges="[]"),
        answer("refused", 1, None, 0.0, status=400, cost_usd=None, charges=None),
        audit("small-0", 1, wrong=False, cost_usd=0.02),
        audit("small-1", 1, wrong=True, cost_usd=0.02),
        audit("small-2", 1, wrong=False, cost_usd=0.02),
        FeedbackRow(id="large-0", at=NOON, verdict="right"),
        FeedbackRow(id="large-1", at=NOON, verdict="wrong"),
        FeedbackRow(id="large-1", at=NOON, verdict="right", judge=False, caller="u"),
        ExpenseRow(id="run", at=NOON - timedelta(hours=2), task="tickets", kind="training", cost_usd=0.4),
    )
    yield made
    made.close()


def test_figures_of_a_task_are_those_of_its_rows(ledger: Ledger) -> None:
    found = watch(ledger, {}, {"task": "tickets", "range": "30d"}, now=NOON)
    assert found["n"] == {"small": 6, "large": 2, "other": 1}
    assert found["share"] == wilson(6, 8).model_dump()
    assert found["usd"] == pytest.approx({"small": 0.006, "large": 0.04, "other": 0.001, "audits": 0.06, "once": 0.4})
    assert found["outcomes"] == {"answered": 9, "failed": 1, "refused": 1}
    assert [(one["task"], one["n"], one["n_missing"]) for one in found["audits"]] == [("tickets", 4, 1)]
    days = [one for one in found["periods"] if one["outcomes"]]
    assert [(one["period"], one["n"].get("large")) for one in days] == [("2026-11-26", 1), ("2026-11-27", 1)]
    assert len(found["periods"]) == 30
    # Fewer than ten audits: the large model's price is the mean of its own answers.
    assert found["periods"][-1]["large_alone_usd"] == pytest.approx(6 * 0.02 + 0.02)
    [saving] = [one for one in savings(ledger, Window.of("30d", NOON).since, NOON) if one.task == "tickets"]
    assert found["saving"]["saved_usd"] == saving.saved_usd.model_dump()  # type: ignore[union-attr]
    assert found["idle_usd"] is None
    small = found["latency"]["small"]
    assert small["p50"] == pytest.approx(10, rel=0.1)
    assert small["p95"] == pytest.approx(1000, rel=0.1)


def test_idle_machine_time_is_that_of_the_bill(ledger: Ledger) -> None:
    window, prices = Window.of("24h", NOON), PriceBook.model_validate({"machine": {"usd_per_hour": 0.36}})
    ledger.note_uptime(NOON - timedelta(hours=2), NOON - timedelta(hours=1))
    ledger.append(answer("own", 1, "small", 0.0, charges='[{"model":"m","usd":0.0,"busy_s":100.0}]'))
    found = watch(ledger, {}, {"task": "tickets", "range": "24h"}, prices=lambda task: prices, now=NOON)
    # An hour of rent, none of which the rows carry.
    assert found["idle_usd"] == pytest.approx(0.36)
    assert found["idle_usd"] == sum(
        one.uncharged_usd for one in machine_costs(ledger, prices, *window[:2], task="tickets")
    )


def test_accuracy_counts_verdicts_and_keeps_marks_apart_from_audits(ledger: Ledger) -> None:
    found = watch(ledger, {}, {"task": "tickets", "range": "24h"}, now=NOON)["accuracy"]
    assert (found["small"]["n"], found["small"]["n_wrong"]) == (3, 1)
    assert found["small"]["value"] == pytest.approx(2 / 3)
    assert 0 < found["small"]["low"] < 2 / 3 < found["small"]["high"] < 1
    assert found["large_marked"] == wilson(1, 2).model_dump()
    assert found["large_measured"] is None


def test_calls_are_counted_by_function_and_who_made_them(ledger: Ledger) -> None:
    def made(id: str, stage: str, function: str) -> LedgerRow:
        step = {
            "stage": stage,
            "decision": "kept" if stage == "small" else "answered",
            "why": "x",
            "function": function,
        }
        return answer(f"small-{id}" if id.isdigit() else id, 1, stage, 0.01, task="home", trail=json.dumps([step]))

    ledger.append(*(made(f"{10 + i}", "small", "Find") for i in range(3)), made("c", "large", "Visit"))
    ledger.append(
        made("a", "large", "Find"), made("b", "large", "no call"), audit("small-11", 1, wrong=True, task="home")
    )
    found = watch(ledger, {}, {"task": "home", "range": "24h"}, now=NOON)["calls"]
    assert [(one["function"], one.get("small", 0), one.get("large", 0)) for one in found] == [
        ("all calls", 3, 2),
        ("Find", 3, 1),
        ("Visit", 0, 1),
        ("no call", 0, 1),
    ]
    assert [(one["audited"], one["wrong"]) for one in found] == [(1, 1), (1, 1), (0, 0), (0, 0)]
    assert found[0]["share"] == wilson(3, 5).model_dump()
    assert watch(ledger, {}, {"task": "tickets", "range": "24h"}, now=NOON)["calls"] == []


def test_all_tasks_have_a_line_each_and_other_models_are_no_task(ledger: Ledger) -> None:
    found = watch(ledger, {}, {"task": "", "range": "24h"}, now=NOON)
    assert {one["task"]: one["n"].get("small") for one in found["tasks"]} == {"tickets": 6, "invoices": 1}
    assert found["n"]["other"] == 2
    assert found["usd"]["other"] == pytest.approx(0.251)
    assert found["periods"][-1]["period"] == "2026-11-27T12"
    assert len(found["periods"]) == 24
    # Nothing tells what the large model would cost for the other task.
    assert (found["saving"]["saved_usd"], found["periods"][-2]["large_alone_usd"]) == (None, None)


def test_the_share_kept_small_is_held_against_calibration_rows_where_the_certificate_decides() -> None:
    def router(policies: tuple[Policy, ...] = (), **changes: Any) -> Router:
        changed = certificate(0.8, **{"n_labels": 400, "n_accepted": 100, **changes})
        return Router(SmallModel(), large_model(), changed, options=RouterOptions(policies=policies))

    assert covered_before(router()) == wilson(100, 400).model_dump()
    assert covered_before(router(below="keep")) is None  # all stay small
    assert covered_before(router((RulePolicy(kind="rule", to="large"),))) is None
    assert covered_before(router(issued=False)) is None


def test_a_range_is_one_of_three(dashboard: DashboardServer) -> None:
    headers = {"authorization": f"Bearer {dashboard.keys['admin']}"}
    refused = httpx.get(f"{dashboard.url}/v1/dashboard/watch?range=2y", headers=headers)
    assert refused.json()["error"]["param"] == "range"


def test_audits_that_break_the_promise_raise_an_alarm_on_the_page(dashboard: DashboardServer) -> None:
    page = dashboard.open("admin", path="#/watch?task=tickets&range=24h")
    page.get_by_role("heading", name="tickets").wait_for()
    assert "Live" in page.locator(".state").inner_text()
    client = httpx.Client(headers={"authorization": f"Bearer {dashboard.keys['admin']}"})
    router = dashboard.router
    body = {"model": "tickets", "messages": [{"role": "user", "content": "something new"}]}
    client.post(f"{dashboard.url}/v1/chat/completions", json=body).raise_for_status()
    page.reload()
    card = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="Answered small"))
    assert "60.0 % of calibration rows" in card.inner_text()
    about = {"task": "tickets", "certificate": router.certificate, "propensity": 1.0, "judged_by": "person"}
    audits = ({"id": f"a{i}", "at": datetime.now(UTC), "wrong": True, **about} for i in range(9))
    dashboard.ledger.append(*map(AuditRow.model_validate, audits))

    def asked_again() -> bool:  # audits are read once a second
        client.post(f"{dashboard.url}/v1/chat/completions", json=body).raise_for_status()
        return router.monitor.state == "fallback"

    until(asked_again)
    page.reload()
    page.get_by_text("Fallback: the large model answers").wait_for()
    assert "audited answers were wrong" in page.get_by_role("region", name="Alarms").inner_text()
    assert "0.0 %" in card.inner_text()
    page.get_by_text("These figures as a table").click()
    rows = page.get_by_role("table", name="Answers and money over time").locator("tbody tr")
    assert sum(int(row.locator("td").nth(1).inner_text()) for row in rows.all()) == len(dashboard.ledger.rows())
    two_hours_ago = datetime.now(UTC) - timedelta(hours=2)
    dashboard.ledger.append(answer("drawn", 0, "small", 0.001, audited=True, at=two_hours_ago))
    page.reload()
    page.get_by_text("1 of 1 drawn audits have no verdict (100%)").wait_for()
    (told,) = client.get(f"{dashboard.url}/v1/routers").json()["data"]
    assert told["audits"]["warns"]
    page.get_by_role("link", name="7 days").click()
    page.get_by_role("link", name="7 days").and_(page.locator("[aria-current]")).wait_for()
    page.close()
