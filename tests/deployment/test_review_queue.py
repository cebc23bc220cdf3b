"""One review queue, ordered by what a label brings; what it takes to mark an answer, and the last mark stands."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from deployment.test_audited_router import Setting
from fixtures.server import RunningServer

from smallfirst.deployment.review_queue import DUE, review_queue
from smallfirst.deployment.service import MonitoringRoutes
from smallfirst.interfaces.cli.improve import review
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow
from smallfirst.serving.settings import ServeSettings
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.task import Task

NOON = datetime.now(UTC) - timedelta(hours=1)
TASK = "tickets"


def answered(ledger: Ledger, id: str, *, task: str = TASK, differs: bool = False, **values: Any) -> None:
    at = NOON + timedelta(seconds=len(ledger.rows()))
    trail = [{"stage": "large", "decision": "answered", "why": "asked last", "differs": differs}]
    row = {
        "id": id, "at": at, "served_name": task, "status": 200, "latency_ms": 1.0, "task": task, "stage": "small",
        "certified": True, "confidence": 0.9, "threshold": 0.8, "request_sha256": id,
        "request_text": json.dumps([["user", f"about {id}"]]), "answer_text": "refund",
        "trail": json.dumps(trail) if differs else None,
    }  # fmt: skip
    ledger.append(LedgerRow.model_validate({**row, **values}))


def audited(ledger: Ledger, id: str, judge: Any, task: str = TASK) -> None:
    values = {"task": task, "certificate": "c", "propensity": 0.5, "wrong": False, "judged_by": judge}
    ledger.append(AuditRow.model_validate({"id": id, "at": NOON, **values}))


def said(ledger: Ledger, id: str, verdict: Any, caller: str = "", **values: Any) -> None:
    ledger.append(FeedbackRow(id=id, at=NOON, verdict=verdict, caller=caller, **values))


def in_every_situation(ledger: Ledger, task: str = TASK, judge: Any = "person") -> list[str]:
    """Answers in every situation; the ids in the order of what a label brings."""

    def id(name: str) -> str:
        return f"{task}-{name}"

    answered(ledger, id("far above"), task=task, confidence=0.99)
    answered(ledger, id("near below"), task=task, certified=False, stage="large", confidence=0.79)
    answered(ledger, id("differs, unsure"), task=task, certified=False, stage="large", confidence=0.4, differs=True)
    answered(ledger, id("differs, sure"), task=task, certified=False, stage="large", confidence=0.7, differs=True)
    answered(ledger, id("left to a person"), task=task, certified=False, stage="person", confidence=0.3)
    answered(ledger, id("left, judged"), task=task, certified=False, stage="person")
    answered(ledger, id("reported"), task=task)
    answered(ledger, id("drawn"), task=task, audited=True)
    answered(ledger, id("drawn later"), task=task, audited=True)
    answered(ledger, id("drawn, audited"), task=task, audited=True, confidence=0.95)
    answered(ledger, id("drawn, judged"), task=task, audited=True)
    answered(ledger, id("same text as judged"), task=task, request_sha256=id("left, judged"))
    answered(ledger, id("no text"), task=task, request_text=None, answer_text=None)
    answered(ledger, id("failed"), task=task, status=503)
    audited(ledger, id("drawn, audited"), judge, task)
    said(ledger, id("left, judged"), "right")
    said(ledger, id("drawn, judged"), "right")
    said(ledger, id("reported"), "wrong", "a user", judge=False)
    due = ["drawn", "drawn later", "reported", "left to a person"]
    helpful = ["differs, sure", "differs, unsure", "near below", "drawn, audited", "far above"]
    return list(map(id, due + helpful))


def test_the_order_is_that_of_what_a_label_brings(ledger: Ledger) -> None:
    expected = in_every_situation(ledger)
    found = review_queue(ledger, [TASK])
    assert [one.row.id for one in found] == expected
    assert found[0].why == "drawn by chance: its verdict counts for the guarantee"
    assert found[4].why == "the small model said something else (confidence 0.700)"
    assert found[6].why == "confidence 0.010 below the threshold of 0.800"
    assert [one.row.id for one in review_queue(ledger, [TASK], recent=0)] == expected[:4]
    assert {one.reason for one in found[:4]} == set(DUE)


@pytest.mark.parametrize("judge", ["person", "large"])
def test_http_and_the_command_line_list_the_same_answers(
    judge: str, tmp_path: Path, run_server: Any, label: Any, ledger: Ledger
) -> None:
    setting = Setting(Ledger(tmp_path / "other.db"), judge=judge)
    in_every_situation(ledger, "another task", judge)
    expected = in_every_situation(ledger, TASK, judge)
    plugin = MonitoringRoutes([setting.live], ledger)
    with run_server({"m": label}, ledger, ServeSettings(), plugins=[plugin]) as server:
        listed = httpx.get(f"{server.url}/v1/queue?task={TASK}").json()
    assert [entry["id"] for entry in listed["data"]] == expected
    assert listed["reasons"] == {"audit": 2, "reported": 1, "unsure": 1, "disagreement": 2, "near": 3}
    (tmp_path / "task.yaml").write_text(f"name: {TASK}\ndata: {{train: train.jsonl}}\n")
    command = [str(tmp_path), "--ledger", str(ledger.path), "--json"]
    shown = CliRunner().invoke(review, command, catch_exceptions=False)
    found = json.loads(shown.output)
    assert [entry["id"] for entry in found["data"]] == expected
    assert found["n_waiting"] == 4


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
def open_desk(ledger: Ledger, tmp_path: Path, run_server: Any) -> Iterator[Any]:
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
