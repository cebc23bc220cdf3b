"""The page in a real Chromium: sign in, try, roles, keyboard, phone, and what axe-core finds."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.dashboard import DashboardServer, SmallModel
from fixtures.server import run_server

from smallfirst.deployment.dashboard.plugin import HEADERS, Dashboard
from smallfirst.ledger.ledger import Ledger


def test_the_page_and_its_files_are_public_and_hold_to_a_strict_policy(dashboard: DashboardServer) -> None:
    for path in ("/", "/dashboard/app.js", "/dashboard/app.css"):
        found = httpx.get(dashboard.url + path)
        assert found.status_code == 200
        assert {name: found.headers[name] for name in HEADERS} == HEADERS
    assert httpx.get(f"{dashboard.url}/v1/dashboard/session").status_code == 401
    assert httpx.get(f"{dashboard.url}/dashboard/secret.js").status_code == 401


def test_sign_in_with_a_wrong_key_then_the_right_one_and_sign_out(dashboard: DashboardServer) -> None:
    page = dashboard.open("")
    page.get_by_label("API key").fill("sf-wrong")
    page.keyboard.press("Enter")
    assert "not known" in page.get_by_role("alert").inner_text()
    page.get_by_label("API key").fill(dashboard.keys["user"])
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Try a request").wait_for()
    assert page.get_by_role("navigation").get_by_role("link").all_inner_texts() == ["Try"]
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").wait_for()
    page.reload()
    page.get_by_label("API key").wait_for()


@pytest.mark.parametrize(
    ("text", "answer", "shown"),
    [("my password", "password", "small path"), ("it is about an invoice", "invoice", "large path")],
)
def test_a_request_shows_its_route_confidence_price_and_guarantee(
    dashboard: DashboardServer, text: str, answer: str, shown: str
) -> None:
    page = dashboard.open("user", path="#/try")
    page.get_by_label("Request").fill(text)
    page.keyboard.press("Control+Enter")
    card = page.get_by_role("region", name="Answer", exact=True)
    assert answer in card.inner_text()
    assert shown in card.inner_text().lower()
    assert ("Guaranteed" in card.inner_text()) == (shown == "small path")
    assert page.get_by_role("region", name="Steps").is_visible()
    where = page.get_by_role("region", name="Where it was read", exact=True)
    assert where.get_by_role("cell").all_inner_texts() == (["2", answer] if shown == "small path" else [])


def test_without_keys_there_is_no_sign_in_and_every_tab(chromium: Any, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    models = {"tickets-small": SmallModel()}
    with run_server(models, ledger, plugins=[Dashboard(models, ledger, {})]) as server:
        page = chromium.new_page()
        page.goto(server.url)
        tabs = page.get_by_role("navigation").get_by_role("link")
        tabs.get_by_text("Watch").wait_for()
        assert not page.get_by_role("button", name="Sign out").is_visible()
        page.get_by_text("No requests in the last 30 days").wait_for()
        # By keyboard alone: past the link that skips to the content, the brand and the first tabs.
        while page.evaluate("document.activeElement.textContent") != "Try":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_label("Request").wait_for()
        assert page.evaluate("document.activeElement.id") == "main"
        page.close()
    ledger.close()


@pytest.mark.parametrize(
    "look", [{}, {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}], ids=["desktop", "dark phone"]
)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(dashboard: DashboardServer, look: Any) -> None:
    """axe-core's rules for WCAG 2.2 A and AA and its best practices, on every page that a reader can reach."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = []

    def check(page: Any) -> None:
        found.extend(
            f"{one['id']}: {node['html']}" for one in axe.run(page).response["violations"] for node in one["nodes"]
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not look or page.evaluate(
            "[...document.querySelectorAll('.wide')].every((one) => one.scrollWidth <= one.clientWidth)"
        )

    page = dashboard.open("", **look)
    page.get_by_label("API key").wait_for()
    check(page)
    page = dashboard.open("admin", path="#/try", **look)
    page.get_by_label("Request").fill("where is my delivery")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Wrong").click()
    check(page)
    page.get_by_role("link", name="Watch").click()
    page.get_by_text("These figures as a table").click()
    check(page)
    page.goto(f"{dashboard.url}/#/watch?task=")
    page.get_by_role("table", name="Figures of each task").wait_for()
    check(page)
    assert found == []
