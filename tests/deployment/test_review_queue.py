"""One review queue: HTTP and the command line list the same answers, whoever judges the task."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from smallfirst.cli.watch import queue
from smallfirst.deployment.monitoring_routes import MonitoringRoutes
from smallfirst.deployment.review_queue import waiting_for_review
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, LedgerRow
from smallfirst.serving.settings import ServeSettings

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def fill(ledger: Ledger) -> None:
    """Answers of two tasks in every situation; the ids say which."""
    order = iter(range(100))

    def row(id: str, task: str, **values: Any) -> None:
        at = NOON - timedelta(minutes=next(order))
        given = {"id": id, "at": at, "served_name": task, "status": 200, "latency_ms": 1.0, "task": task}
        ledger.append(LedgerRow.model_validate({**given, "stage": "small", "certified": True, **values}))

    def audit(id: str, task: str, judge: Any) -> None:
        values = {"task": task, "certificate": "c", "propensity": 0.5, "wrong": False, "judged_by": judge}
        ledger.append(AuditRow.model_validate({"id": id, "at": NOON, **values}))

    for task, judge in (("by_person", "person"), ("by_large", "large")):
        row(f"{task}-marked", task, stage="person", certified=False)
        row(f"{task}-marked-judged", task, stage="person", certified=False)
        row(f"{task}-selected", task, audited=True)
        row(f"{task}-selected-audited", task, audited=True)
        row(f"{task}-selected-judged", task, audited=True)
        row(f"{task}-fallback", task, audited=True, certified=False, stage="large")
        row(f"{task}-other", task)
        audit(f"{task}-selected-audited", task, judge)
        for id in (f"{task}-marked-judged", f"{task}-selected-judged"):
            ledger.append(FeedbackRow(id=id, at=NOON, verdict="right"))


class Routed:
    """Stands for a Router: only its name is asked."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize("task", ["by_person", "by_large"])
def test_http_and_the_command_line_list_the_same_answers(
    task: str, tmp_path: Path, run_server: Any, label: Any
) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    fill(ledger)
    expected = [f"{task}-selected", f"{task}-marked"]  # the oldest first
    assert [row.id for row in waiting_for_review(ledger, [task])] == expected
    plugin = MonitoringRoutes([Routed(task)], ledger)  # type: ignore[list-item]
    with run_server({"m": label}, ledger, ServeSettings(), plugins=[plugin]) as server:
        listed = httpx.get(f"{server.url}/v1/queue").json()["data"]
    ledger.close()
    assert [entry["id"] for entry in listed] == expected
    command = ["--task", task, "--ledger", str(tmp_path / "ledger.db"), "--json"]
    shown = CliRunner().invoke(queue, command, catch_exceptions=False)
    assert [entry["id"] for entry in json.loads(shown.output)["data"]] == expected
