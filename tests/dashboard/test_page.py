"""The page in a real Chromium: sign in, try, roles, keyboard, phone, and what axe-core finds."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fixtures.dashboard import DashboardServer

from smallfirst.dashboard.page import HEADERS


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


def serious(page: Any) -> list[str]:
    """What axe-core finds on a page, one line each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in axe.run(page).response["violations"]]
