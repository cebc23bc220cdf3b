"""One review queue, ordered by what a label brings; HTTP and the command line list the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from deployment.test_audited_router import Setting

from smallfirst.deployment.monitoring_routes import MonitoringRoutes
from smallfirst.deployment.review_queue import DUE, review_queue
from smallfirst.interfaces.cli.improve import review
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow
from smallfirst.serving.settings import ServeSettings

NOON = datetime.now(UTC) - timedelta(hours=1)
TASK = "tickets"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


def answered(ledger: Ledger, id: str, *, task: str = TASK, differs: bool = False, **values: Any) -> None:
    """An answer, younger than those before."""
    at = NOON + timedelta(seconds=len(ledger.rows()))
    trail = [{"stage": "large", "decision": "answered", "why": "asked last", "differs": differs}]
    row = {
        "id": id,
        "at": at,
        "served_name": task,
        "status": 200,
        "latency_ms": 1.0,
        "task": task,
        "stage": "small",
        "certified": True,
        "confidence": 0.9,
        "threshold": 0.8,
        "request_sha256": id,
        "request_text": json.dumps([["user", f"about {id}"]]),
        "answer_text": "refund",
        "trail": json.dumps(trail) if differs else None,
    }
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
    assert [one.reason for one in found] == [
        *["audit"] * 2,
        "reported",
        "unsure",
        *["disagreement"] * 2,
        *["near"] * 3,
    ]
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
    assert listed["reasons"] == {
        "audit": 2,
        "reported": 1,
        "unsure": 1,
        "disagreement": 2,
        "near": 3,
    }
    (tmp_path / "task.yaml").write_text(f"name: {TASK}\ndata: {{train: train.jsonl}}\n")
    command = [str(tmp_path), "--ledger", str(tmp_path / "ledger.db"), "--json"]
    shown = CliRunner().invoke(review, command, catch_exceptions=False)
    found = json.loads(shown.output)
    assert [entry["id"] for entry in found["data"]] == expected
    assert found["n_waiting"] == 4
