"""The tab on which judges mark answers, in a real Chromium: two people, a key a label, search, JSON."""

import json
from typing import Any

import httpx
import pytest
from fixtures.dashboard import LABELS, TASK, DashboardServer

from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract


def ask(server: DashboardServer, *texts: str) -> None:
    headers = {"authorization": f"Bearer {server.keys['user']}"}
    for text in texts:
        body = {"model": TASK, "messages": [{"role": "user", "content": text}]}
        httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers).raise_for_status()


def shows(page: Any, text: str) -> bool:
    page.locator(".turn", has_text=text).wait_for()
    return True


def found_by_axe(page: Any) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in axe.run(page).response["violations"]]


def verdicts(server: DashboardServer) -> list[tuple[str, str | None]]:
    return [(row.verdict, row.answer) for row in server.ledger.entries(FeedbackRow)]


@pytest.fixture
def queue(dashboard: DashboardServer) -> DashboardServer:
    """The server when chance draws all answers that stay small."""
    dashboard.router._rng.random = lambda: 0.0  # type: ignore[method-assign]
    return dashboard


def test_two_judges_mark_skip_go_back_and_see_whose_mark_theirs_replaces(queue: DashboardServer) -> None:
    ask(queue, "my refund", "my delivery", "an unclear invoice")
    ada = queue.open("judge", path="#/queue")
    assert shows(ada, "my refund")
    assert ada.locator(".tag").inner_text() == "Audit"
    ada.keyboard.press("3")  # password, while refund was given
    ada.get_by_text("it said refund, right is password").wait_for()
    assert "counts for the guarantee, and is final: 1 audit, 100.0 % wrong" in ada.locator(".note").inner_text()
    assert shows(ada, "my delivery")
    ada.keyboard.press("u")
    assert shows(ada, "my refund")
    ada.keyboard.press("1")
    ada.get_by_text("Right: refund").wait_for()
    assert verdicts(queue) == [("wrong", "password"), ("right", "refund")]
    assert [row.wrong for row in queue.ledger.entries(AuditRow)] == [True]  # the verdict of an audit is final
    assert shows(ada, "my delivery")
    ben = queue.open("second judge", path="#/queue")
    assert shows(ben, "my delivery")
    ada.keyboard.press("s")
    assert shows(ada, "an unclear invoice")
    assert "the small model said something else" in ada.locator(".why").inner_text()
    ben.keyboard.press("2")
    ben.get_by_text("Right: delivery").wait_for()
    assert shows(ben, "an unclear invoice")
    id = queue.ledger.entries(FeedbackRow)[-1].id
    headers = {"authorization": f"Bearer {queue.keys['judge']}"}
    body = {"id": id, "answer": "card"}
    replaced = httpx.post(f"{queue.url}/v1/feedback", json=body, headers=headers).json()["replaces"]
    assert (replaced["by"], replaced["verdict"]) == ("second-judge", "right")
    ben.keyboard.press("u")
    assert shows(ben, "my delivery")
    ben.get_by_text("marked it wrong: card").wait_for()
    ben.keyboard.press("2")
    ben.get_by_text("marked it wrong: card; this stands now").wait_for()


def test_many_labels_are_searched_and_a_phone_is_enough(queue: DashboardServer) -> None:
    before = queue.router.auditing
    labels = (*LABELS, *(f"topic_{n}" for n in range(20)), "lost_card")
    queue.router.auditing = before._replace(task=Classify(name=TASK, labels=labels))
    ask(queue, "refund my card")
    page = queue.open("judge", path="#/queue", viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert shows(page, "refund my card")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.keyboard.press("/")
    page.keyboard.type("card")
    assert page.get_by_role("group", name="Labels found").get_by_role("button").all_inner_texts() == ["lost_card"]
    assert found_by_axe(page) == []
    page.keyboard.press("Enter")
    page.get_by_text("right is lost_card").wait_for()
    assert verdicts(queue)[-1] == ("wrong", "lost_card")
    queue.router.auditing = before


def test_a_json_answer_is_corrected_in_an_editor(queue: DashboardServer) -> None:
    before = queue.router.auditing
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    queue.router.auditing = before._replace(task=Extract(name=TASK, json_schema=schema))
    row = queue.ledger.rows(limit=1)[0]
    values = {"id": "json", "answer_text": '{"sum": 3}', "certified": True, "audited": True, "audit_share": 0.5}
    text = f"terms {'and so on ' * 60}\f<img src=x onerror=alert(1)> sum: 3 of it"
    read = {"sum": {"message": 0, "role": "user", "start": 999, "end": 1000, "page": 2, "offset": 34}}
    step = {"stage": "small", "decision": "kept", "why": "sure", "read": read}
    values |= {"request_text": json.dumps([["user", text]]), "trail": json.dumps([step]), "stage": "small"}
    queue.ledger.append(LedgerRow.model_validate({**row.model_dump(), **values}))
    page = queue.open("judge", path="#/queue")
    assert page.locator(".turn").first.inner_text() == "page 2: <img src=x onerror=alert(1)> sum: 3 sum of it"
    assert page.locator("mark").inner_text() == "3"
    page.get_by_text("The queue (").click()
    page.get_by_role("row", name="Audit").get_by_role("cell", name="here").wait_for()
    page.get_by_text("Fields: sum").wait_for()
    page.keyboard.press("e")
    page.get_by_label("The right answer").fill("{sum: 4}")
    page.keyboard.press("Control+Enter")
    assert "This is no JSON" in page.get_by_role("alert").inner_text()
    page.get_by_label("The right answer").fill('{"sum": 4}')
    assert found_by_axe(page) == []
    page.keyboard.press("Control+Enter")
    page.get_by_text('right is {"sum": 4}').wait_for()
    assert verdicts(queue)[-1] == ("wrong", '{"sum": 4}')
    queue.router.auditing = before
