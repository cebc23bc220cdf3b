"""What a person reads about a served answer, and the queue of those that wait for one."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from fixtures.cli import NOON, row

from smallfirst.cli.watch import explain, queue
from smallfirst.errors import ConfigError
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, StateRow

STEPS: list[dict[str, Any]] = [
    {"stage": "domain", "decision": "passed on", "why": "the task's own", "score": 0.1, "threshold": 0.4},
    {
        "stage": "words",
        "decision": "passed on",
        "why": "not sure enough",
        "model": "toy-words",
        "score": 0.41,
        "threshold": 1.01,
        "cost_usd": 0.000001,
        "latency_ms": 1.25,
    },
    {
        "stage": "small",
        "decision": "kept",
        "why": "as sure as the certificate asks for",
        "model": "toy-small",
        "score": 0.93,
        "threshold": 0.88,
        "cost_usd": 0.000019,
        "latency_ms": 31.0,
    },
    {"stage": "large", "decision": "not asked", "why": "expected price", "model": "big", "cost_usd": 0.0012},
]


def call(command: click.Command, *words: str) -> Result:
    return CliRunner().invoke(command, words, catch_exceptions=False)


def test_a_kept_answer_is_explained_step_by_step_with_prices_and_what_became_of_it(ledger: Ledger) -> None:
    for minutes, before, after in ((-60, "", "live"), (-30, "live", "drift"), (30, "drift", "fallback")):
        at = NOON + timedelta(minutes=minutes)
        values = {"at": at, "task": "toy", "before": before, "after": after, "why": f"because {after}"}
        ledger.append(StateRow.model_validate({**values, "certificate": "abc123"}))
    kept = row(
        "chatcmpl-1",
        trail=json.dumps(STEPS),
        guarantee="at most 3 % of kept answers wrong",
        audit_share=0.02,
        audited=True,
        request_text=json.dumps([["user", "where is\nmy card"]]),
        answer_text="card_arrival",
    )
    ledger.append(kept)
    values = {"id": kept.id, "at": NOON, "task": "toy", "certificate": "abc123", "propensity": 0.02, "wrong": True}
    ledger.append(AuditRow.model_validate({**values, "judged_by": "large", "cost_usd": 0.0013, "other": "lost_pin"}))
    ledger.append(FeedbackRow(id=kept.id, at=NOON, verdict="wrong", answer="refund_request"))
    assert call(explain, kept.id).output.splitlines() == [
        "answer     chatcmpl-1",
        "asked      2026-01-02 12:00:00 UTC, as auto",
        "question   where is my card",
        "answered   by toy-small (stage small) in 32.2 ms for $0.00002",
        "says       card_arrival",
        "task       toy",
        "guarantee  at most 3 % of kept answers wrong",
        "state      drift since 2026-01-02 11:30:00 UTC: because drift (certificate abc123)",
        "",
        "stage   decision   score   asked for    ms        USD  model      why",
        "domain  passed on  0.100    <= 0.400                              the task's own",
        "words   passed on  0.410  never kept   1.2   0.000001  toy-words  not sure enough",
        "small   kept       0.930    >= 0.880  31.0   0.000019  toy-small  as sure as the certificate asks for",
        "large   not asked                           ~0.001200  big        expected price",
        "",
        "not chosen: asking big as well would have cost about $0.0012 more than the $0.00002 that was paid",
        "audit: chosen by chance, of which it had 2 %",
        "  2026-01-02 12:00:00 UTC  wrong, judged by the large model for $0.0013, which says lost_pin",
        "feedback: 2026-01-02 12:00:00 UTC  wrong; right is refund_request",
    ]
    told = json.loads(call(explain, kept.id, "--json").output)
    assert told["state"]["after"] == "drift"
    assert [step["stage"] for step in told["steps"]] == ["domain", "words", "small", "large"]
    assert told["audits"][0]["propensity"] == 0.02


def test_an_escalated_answer_says_what_the_draft_would_have_saved(ledger: Ledger) -> None:
    asked = {"stage": "large", "decision": "answered", "why": "asked last", "model": "big", "cost_usd": 0.5}
    ledger.append(
        row(
            "e",
            stage="large",
            answered_by="big",
            certified=False,
            cost_usd=0.500001,
            trail=json.dumps([STEPS[1], asked]),
        )
    )
    lines = call(explain, "e").output.splitlines()
    assert "guarantee  none about this answer" in lines
    assert "not chosen: letting the draft of toy-words stand would have saved $0.5 of $0.500001" in lines
    assert "feedback: none" in lines
    assert not any(line.startswith(("question", "says", "state", "audit")) for line in lines)


def test_what_failed_says_so_and_a_wrong_id_names_near_ones(ledger: Ledger) -> None:
    ledger.append(
        row("chatcmpl-0f3a", status=503, error_code="model_unavailable", task=None, stage=None, cost_usd=None)
    )
    ledger.append(row("chatcmpl-9999"))
    assert "failed  503 model_unavailable after 32 ms" in call(explain, "chatcmpl-0f3a").output
    with pytest.raises(ConfigError, match=r"near it: chatcmpl-0f3a(?s:.*)x-request-id"):
        call(explain, "chatcmpl-0f")
    with pytest.raises(ConfigError, match=r"no answer with the id 'q' is in \S*ledger.db\n"):
        call(explain, "q")


def test_nothing_is_made_where_there_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.db: no such ledger(?s:.*)--ledger"):
        call(explain, "a", "--ledger", str(tmp_path / "none.db"))
    assert list(tmp_path.glob("*.db")) == []


def test_the_queue_shows_what_nobody_has_judged_oldest_first(ledger: Ledger) -> None:
    text = json.dumps([["user", "hm"]])
    hour = timedelta(hours=1)
    ledger.append(row("late", stage="person", certified=False, confidence=0.4, at=NOON + hour, request_text=text))
    ledger.append(row("early", audited=True, audit_share=0.1))
    ledger.append(row("told", stage="person", certified=False))
    ledger.append(FeedbackRow(id="told", at=NOON, verdict="right"))
    ledger.append(row("done", audited=True, audit_share=0.1))
    values = {"id": "done", "at": NOON, "task": "toy", "certificate": "c", "propensity": 0.1, "wrong": False}
    ledger.append(AuditRow.model_validate({**values, "judged_by": "large"}))
    ledger.append(row("kept"))
    ledger.append(row("beside", audited=True, audit_share=0.1, certified=False, stage="large"))
    ledger.append(row("foreign", stage="person", task="other"))
    found = json.loads(call(queue, "--task", "toy", "--json").output)
    assert [(entry["id"], entry["why"]) for entry in found["data"]] == [
        ("early", "drawn by chance: its verdict counts for the guarantee"),
        ("late", "no model was sure (confidence 0.400): left to a person"),
    ]
    output = call(queue, "--task", "toy", "--limit", "1").output
    assert output.startswith("2 answers of toy wait for a person")
    assert "early" in output
    assert "late" not in output
    assert "--store-bodies" in output
    assert "--limit 2" in output
    assert "asked    hm" in call(queue, "--task", "toy").output
    assert call(queue, "--task", "nobody").output == "0 answers of nobody wait for a person\n"
