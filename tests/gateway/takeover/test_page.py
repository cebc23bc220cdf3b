"""The proxy's page in a real Chromium: sign in with an admin's key, the tasks of the traffic, and one under watch."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fixtures.dashboard import TASK, tickets_router
from fixtures.gateway import run_gateway

from smallfirst.dashboard.page import HEADERS
from smallfirst.gateway.access import Access
from smallfirst.gateway.app import Gateway
from smallfirst.gateway.settings import GatewaySettings
from smallfirst.gateway.takeover.page import page_routes
from smallfirst.gateway.takeover.takeovers import TakeOver, TakeOvers
from smallfirst.gateway.takeover.tasks import TakenOverTasks
from smallfirst.gateway.task_table import task_routes
from smallfirst.serving.auth.keys import KeyPolicy, KeyStore
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow


def test_the_proxy_has_a_page_of_its_tasks(chromium: Any, tmp_path: Path) -> None:
    ledger, store = Ledger(tmp_path / "ledger.db"), KeyStore(tmp_path / "keys.json")
    _, user = store.create("user", KeyPolicy())
    _, admin = store.create("admin", KeyPolicy(role="admin"))
    for index, stage in enumerate(("small", "small", "large")):
        given = {"id": str(index), "at": datetime.now(UTC), "served_name": "m", "status": 200, "latency_ms": 5.0}
        ledger.append(LedgerRow.model_validate({**given, "stage": stage, "task": TASK, "cost_usd": 0.01}))
    taken = TakeOver(task=TASK, folder=tmp_path / TASK, state="live", share=0.5, promise="at most 5 % wrong")
    taken = taken.stepped_back("ada", "prompt", "another <wording>", one_tenant=False)
    TakeOvers(tmp_path / "takeovers.json").put(taken)
    local = TakenOverTasks(ledger, TakeOvers(tmp_path / "none.json"))
    routes = {**task_routes(tmp_path, tmp_path), **page_routes(ledger, local)}
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
