"""Two judges at one queue over HTTP: different answers, marks by the right answer, conflicts, undo, dissent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment.test_audited_router import Says, Setting
from deployment.test_review_queue import TASK, answered
from fixtures.server import RunningServer

from smallfirst.deployment.monitoring_routes import MonitoringRoutes
from smallfirst.models.protocol import Completion, Request
from smallfirst.serving.auth.keys import KeyPolicy, KeyStore
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import FeedbackRow
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.task import Task

LABELS = Classify(name=TASK, labels=("refund", "other", "lost card"))


class Other(Says):
    """A cheap candidate that reads the question."""

    async def complete(self, request: Request) -> Completion:
        found = await super().complete(request)
        return found.model_copy(update={"text": "lost card" if "doubt" in request.text else "refund"})


class Desk:
    """A server with a queue, and judges with keys."""

    def __init__(self, server: RunningServer, setting: Setting, keys: dict[str, str]) -> None:
        self.setting, self._url, self._keys = setting, server.url, keys

    def post(self, name: str, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self._url}{path}", json=body, headers={"authorization": f"Bearer {self._keys[name]}"})

    def claim(self, name: str, **body: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.post(name, "/v1/queue/claim", **body).json()
        return found["item"] or {"id": None}

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
            setting, store = Setting(ledger, judge="person"), KeyStore(tmp_path / "keys.json")
            other = Other("words", confidence=0.7)
            setting.live.auditing = setting.live.auditing._replace(task=task, others=lambda: (other,))
            roles: dict[str, Any] = {"ada": "judge", "ben": "judge", "uma": "user"}
            keys = {name: store.create(name, KeyPolicy(role=role))[1] for name, role in roles.items()}
            plugin = MonitoringRoutes([setting.live], ledger)
            models = {TASK: setting.live}
            return Desk(
                stack.enter_context(run_server(models, ledger, plugins=[plugin], key_store=store)), setting, keys
            )

        yield opened


def test_two_judges_mark_different_answers_and_see_a_conflict(open_desk: Any, ledger: Ledger) -> None:
    desk = open_desk()
    for id in ("a", "b", "in doubt"):
        answered(ledger, id, confidence={"a": 0.81, "b": 0.83, "in doubt": 0.99}[id])
    ada = desk.claim("ada", worker="1")
    assert (ada["id"], ada["reason"], ada["why"]) == (
        "in doubt",
        "disagreement",
        "words says something else (0.70)",
    )
    assert (ada["question"], ada["answer"], ada["kind"]) == ([["user", "about in doubt"]], "refund", "label")
    assert ada["offer"] == ada["labels"] == ["refund", "other", "lost card"]
    assert [(one["model"], one["answer"]) for one in ada["drafts"]] == [("small", "refund"), ("words", "lost card")]
    assert [desk.claim("ben", worker="2")["id"], desk.claim("ada", worker="1")["id"]] == ["a", "in doubt"]
    assert desk.claim("ben", worker="2", skip="a")["id"] == "b"
    assert desk.mark("ada", "in doubt", answer=" Lost card", worker="1") == {
        "object": "feedback",
        "id": "in doubt",
        "verdict": "wrong",
        "audit": False,
        "others": [],
        "conflict": False,
    }
    assert desk.claim("ada", worker="1", take="in doubt")["id"] == "in doubt"
    assert desk.post("ben", "/v1/queue/claim", worker="2", id="in doubt").json()["error"]["code"] == "held"
    taken = desk.claim("ben", worker="2", take="in doubt")
    (mark,) = taken["marks"]
    assert (mark["by"], mark["verdict"], mark["answer"], mark["mine"]) == ("ada", "wrong", "lost card", False)
    found = desk.mark("ben", "in doubt", answer="refund", worker="2")
    assert (found["verdict"], found["conflict"], found["others"][0]["by"]) == ("right", True, "ada")
    assert desk.mark("ben", "in doubt", answer="lost card", worker="2")["conflict"] is False
    assert [(row.verdict, row.answer) for row in ledger.entries(FeedbackRow)] == [
        ("wrong", "lost card"),
        ("right", "refund"),
        ("wrong", "lost card"),
    ]
    assert desk.claim("ada", worker="1")["id"] == "a"  # Ben let go of it when he skipped it
    assert desk.claim("ada", worker="1", skip="a")["id"] == "b"  # of which he let go when he took another
    assert desk.claim("ada", worker="1", skip="b")["id"] is None


def test_what_no_judge_may_do_or_the_task_does_not_know_is_refused(open_desk: Any, ledger: Ledger) -> None:
    desk = open_desk()
    answered(ledger, "a")
    answered(ledger, "not stored", request_text=None, answer_text=None, audited=True)
    assert desk.post("uma", "/v1/queue/claim").status_code == 403
    for body, path, field in (
        ({"id": "a", "answer": "no such label"}, "/v1/feedback", "answer"),
        ({"id": "not stored", "answer": "refund"}, "/v1/feedback", "verdict"),
        ({"id": "a"}, "/v1/feedback", "verdict"),
        ({"worker": 7}, "/v1/queue/claim", "worker"),
    ):
        refused = desk.post("ada", path, **body)
        assert refused.status_code in (400, 409)
        assert refused.json()["error"]["param"] == field
    assert desk.post("ada", "/v1/queue/claim", id="none").status_code == 404
    shown = desk.claim("ada", worker="1")
    assert (shown["id"], shown["reason"], shown["question"], shown["drafts"]) == ("not stored", "audit", [], [])


def test_a_json_answer_is_compared_in_canonical_form(open_desk: Any, ledger: Ledger) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    desk = open_desk(Extract(name=TASK, json_schema=schema))
    answered(ledger, "a", answer_text='{"sum": 3}')
    item = desk.claim("ada", worker="1")
    assert (item["kind"], item["schema"]["properties"]["sum"]["type"]) == ("json", "integer")
    desk.setting.live.auditing = desk.setting.live.auditing._replace(
        agrees=lambda draft, other: json.loads(draft) == json.loads(other)
    )
    assert desk.mark("ada", "a", answer='{ "sum":3 }')["verdict"] == "right"
    assert desk.mark("ada", "a", answer='{"sum": 4}')["verdict"] == "wrong"
    assert ledger.entries(FeedbackRow)[-1].answer == '{"sum": 4}'
