"""The queue over HTTP: what it takes to mark an answer, marks by the right answer, and the last of them stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment.test_audited_router import Setting
from deployment.test_review_queue import TASK, answered
from fixtures.server import RunningServer

from smallfirst.deployment.monitoring_routes import MonitoringRoutes
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import FeedbackRow
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.task import Task

LABELS = Classify(name=TASK, labels=("refund", "other", "lost card"))


class Desk:
    """A server with a queue, and judges with keys."""

    def __init__(self, server: RunningServer, setting: Setting, keys: dict[str, str]) -> None:
        self.setting, self._url, self._keys = setting, server.url, keys

    def post(self, name: str, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self._url}{path}", json=body, headers={"authorization": f"Bearer {self._keys[name]}"})

    def get(self, name: str, path: str) -> httpx.Response:
        return httpx.get(f"{self._url}{path}", headers={"authorization": f"Bearer {self._keys[name]}"})

    def first(self, name: str) -> dict[str, Any]:
        listed = self.get(name, "/v1/queue").json()["data"]
        return {**listed[0], **self.get(name, f"/v1/queue/{listed[0]['id']}").json()}

    def mark(self, name: str, id: str, **body: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.post(name, "/v1/feedback", id=id, **body).json()
        return found


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.fixture
def open_desk(ledger: Ledger, tmp_path: Path, run_server: Any) -> Iterator[Any]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def opened(task: Task = LABELS) -> Desk:
            setting, store = Setting(ledger, judge="person"), KeyStore(tmp_path / "keys.db")
            setting.live.auditing = setting.live.auditing._replace(task=task)
            roles: dict[str, Any] = {"ada": "judge", "ben": "judge", "uma": "user"}
            keys = {name: store.create(name, KeyPolicy(role=role))[1] for name, role in roles.items()}
            plugin = MonitoringRoutes([setting.live], ledger)
            models = {TASK: setting.live}
            return Desk(
                stack.enter_context(run_server(models, ledger, plugins=[plugin], key_store=store)), setting, keys
            )

        yield opened


def test_the_last_of_two_judges_marks_stands_and_says_which_it_replaces(open_desk: Any, ledger: Ledger) -> None:
    desk = open_desk()
    answered(ledger, "a", confidence=0.81)
    answered(ledger, "b", confidence=0.83)
    answered(ledger, "in doubt", certified=False, stage="large", answered_by="large", differs=True)
    item = desk.first("ada")
    assert (item["id"], item["reason"]) == ("in doubt", "disagreement")
    assert (item["question"], item["answer"], item["kind"]) == ([["user", "about in doubt"]], "refund", "label")
    assert item["offer"] == item["labels"] == ["refund", "other", "lost card"]
    assert item["draft"] == {"model": "small", "answer": "refund", "confidence": 0.9}
    told = {"object": "feedback", "id": "in doubt", "verdict": "wrong", "audit": False, "replaces": None}
    assert desk.mark("ada", "in doubt", answer=" Lost card") == told
    assert desk.first("ben")["id"] == "a"
    (mark,) = desk.get("ben", "/v1/queue/in doubt").json()["marks"]
    assert (mark["by"], mark["verdict"], mark["answer"]) == ("ada", "wrong", "lost card")
    found = desk.mark("ben", "in doubt", answer="refund")
    assert (found["verdict"], found["replaces"]) == ("right", mark)
    (mark,) = desk.get("ada", "/v1/queue/in doubt").json()["marks"]
    assert (mark["by"], mark["verdict"]) == ("ben", "right")
    said = [(row.name, row.verdict, row.answer) for row in ledger.entries(FeedbackRow)]
    assert said == [("ada", "wrong", "lost card"), ("ben", "right", "refund")]


def test_what_no_judge_may_do_or_the_task_does_not_know_is_refused(open_desk: Any, ledger: Ledger) -> None:
    desk = open_desk()
    answered(ledger, "a")
    answered(ledger, "not stored", request_text=None, answer_text=None, audited=True)
    assert [desk.get("uma", path).status_code for path in ("/v1/queue", "/v1/queue/a")] == [403, 403]
    for body, path, field in (
        ({"id": "a", "answer": "no such label"}, "/v1/feedback", "answer"),
        ({"id": "not stored", "answer": "refund"}, "/v1/feedback", "verdict"),
        ({"id": "a"}, "/v1/feedback", "verdict"),
        ({"id": "a", "verdict": "right", "worker": "w"}, "/v1/feedback", "worker"),
    ):
        refused = desk.post("ada", path, **body)
        assert refused.status_code in (400, 409)
        assert refused.json()["error"]["param"] == field
    assert desk.get("ada", "/v1/queue/none").status_code == 404
    shown = desk.first("ada")
    assert (shown["id"], shown["reason"], shown["question"], shown["draft"]) == ("not stored", "audit", [], None)


def test_a_json_answer_is_compared_in_canonical_form(open_desk: Any, ledger: Ledger) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    desk = open_desk(Extract(name=TASK, json_schema=schema))
    answered(ledger, "a", answer_text='{"sum": 3}')
    item = desk.first("ada")
    assert (item["kind"], item["schema"]["properties"]["sum"]["type"]) == ("json", "integer")
    desk.setting.live.auditing = desk.setting.live.auditing._replace(
        agrees=lambda draft, other: json.loads(draft) == json.loads(other)
    )
    assert desk.mark("ada", "a", answer='{ "sum":3 }')["verdict"] == "right"
    assert desk.mark("ada", "a", answer='{"sum": 4}')["verdict"] == "wrong"
    assert ledger.entries(FeedbackRow)[-1].answer == '{"sum": 4}'
