"""An answer explained, the review of answers and labels, harvested rows."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from fixtures.cli import NOON, call, evaluated, failed, row
from fixtures.preflight import write_task

from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, StateRow

STEPS: list[dict[str, Any]] = [
    {"stage": "domain", "decision": "passed on", "why": "the task's own", "score": 0.1, "threshold": 0.4},
    {
        "stage": "words", "decision": "passed on", "why": "not sure enough", "model": "toy-words", "score": 0.41,
        "threshold": 1.01, "cost_usd": 0.000001, "latency_ms": 1.25,
    },
    {
        "stage": "small", "decision": "kept", "why": "as sure as the certificate asks for", "model": "toy-small",
        "score": 0.93, "threshold": 0.88, "cost_usd": 0.000019, "latency_ms": 31.0, "function": "Block",
        "read": {"card": {"message": 0, "role": "user", "start": 9, "end": 16}, "lost": None,
                 "iban": {"message": 0, "role": "user", "start": 40, "end": 44, "page": 2, "offset": 3}},
    },
    {"stage": "large", "decision": "not asked", "why": "expected price", "model": "big", "cost_usd": 0.0012},
]  # fmt: skip


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
        request_text=json.dumps([["user", "where is\nmy card [EMAIL]\fis card [IBAN]"]]),
        answer_text="card_arrival",
    )
    ledger.append(kept)
    values = {"id": kept.id, "at": NOON, "task": "toy", "certificate": "abc123", "propensity": 0.02, "wrong": True}
    ledger.append(AuditRow.model_validate({**values, "judged_by": "large", "cost_usd": 0.0013, "other": "lost_pin"}))
    ledger.append(FeedbackRow(id=kept.id, at=NOON, verdict="wrong", answer="refund_request"))
    output = call("explain", kept.id).output
    for line in (
        "question   where is my card [EMAIL] is card [IBAN]",
        "answered   by toy-small (stage small) in 32.2 ms for $0.000020",
        "guarantee  at most 3 % of kept answers wrong",
        "state      drift since 2026-01-02 11:30:00 UTC: because drift (certificate abc123)",
        "audited    2026-01-02 12:00:00 UTC, wrong by the large model for $0.001300, which says lost_pin",
        "feedback   2026-01-02 12:00:00 UTC, wrong; right is refund_request",
        "read       card: messages[0] (user), characters 9 to 16: my card",
        "read       lost: a usual value, judged from words",
        "read       iban: messages[0] (user), page 2, offset 3, characters 40 to 44: card",
        "domain  passed on  0.100    <= 0.400                              the task's own",
        "words   passed on  0.410  never kept   1.2   0.000001  toy-words  not sure enough",
        "large   not asked                           ~0.001200  big        expected price",
    ):
        assert f"\n{line}\n" in output
    told = json.loads(call("explain", kept.id, "--json").output)
    assert told["state"]["after"] == "drift"
    assert [step["stage"] for step in told["steps"]] == ["domain", "words", "small", "large"]
    assert told["audits"][0]["propensity"] == 0.02


def test_what_failed_says_so_and_an_unknown_id_is_refused(ledger: Ledger) -> None:
    ledger.append(
        row("chatcmpl-0f3a", status=503, error_code="model_unavailable", task=None, stage=None, cost_usd=None)
    )
    assert "failed  503 model_unavailable after 32 ms" in call("explain", "chatcmpl-0f3a").output
    assert "no answer with the id 'q' is in " in failed(call("explain", "q"), 2)


def test_the_review_shows_what_nobody_has_judged_oldest_first(ledger: Ledger, tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text("name: toy\ndata: {train: train.jsonl}\n")
    text = json.dumps([["user", "hm"]])
    at = NOON + timedelta(hours=1)
    ledger.append(row("late", stage="person", certified=False, confidence=0.4, at=at, request_text=text))
    ledger.append(row("early", audited=True, audit_share=0.1))
    found = json.loads(call("review", task, "--json").output)
    assert [(entry["id"], entry["why"]) for entry in found["data"]] == [
        ("early", "drawn by chance: its verdict counts for the guarantee"),
        ("late", "no model was sure (confidence 0.400): left to a person"),
    ]
    output = call("review", task, "--limit", "1").output
    assert output.startswith("2 answers of toy wait for a person")
    assert ("early" in output, "late" in output, "--store-bodies" in output) == (True, False, True)
    assert "asked    hm" in call("review", task).output


def test_training_rows_that_look_mislabelled_are_written(desk_folder: Path, tmp_path: Path) -> None:
    evaluated(wrong=30)
    result = call("review", desk_folder, "--labels", tmp_path / "suspects.jsonl")
    assert result.exit_code == 0
    assert result.output == f"no probable label errors: label more rows\nnext: smallfirst run {desk_folder}\n"
    assert (tmp_path / "suspects.jsonl").exists()


def test_findings_are_listed_settled_by_a_file_and_taken_back(tmp_path: Path) -> None:
    def line(i: int) -> dict[str, str]:
        label = "abc"[(i // 6 + (i % 6 == 5)) % 3]
        text = " ".join(f"{'abc'[i // 6 % 3]}{(i * k) % 5}" for k in (1, 2, 3))
        return {"text": f"{text} w{i * 37 % 101} w{i * 53 % 103}", "label": label, "tenant": f"t{i % 6}"}

    write_task(tmp_path, {"train": map(line, range(360))}, data={"columns": {"tenant": "tenant"}})
    (found,) = json.loads(call("review", tmp_path, "--json").output)["issues"]
    assert (found["kind"], found["tenant"], found["choices"]) == ("tenant", "t5", ["drop", "keep"])
    listed = call("review", tmp_path).output
    assert f"settle it: --settle {found['id'][:8]}=drop|keep" in listed
    assert "  keep   the answers are right as they are\n" in listed
    assert "0 findings have this id" in failed(call("review", tmp_path, "--settle", "zz=drop"), 2)
    (tmp_path / "decided.txt").write_text(f"{found['id'][:6]}=drop\n")
    said = call("review", tmp_path, "--decisions", tmp_path / "decided.txt").output
    assert said.startswith('drop: tenant "t5" is answered unlike all others')
    assert f"next: smallfirst run {tmp_path}" in said
    assert json.loads(call("review", tmp_path, "--json").output)["issues"] == []
    assert call("review", tmp_path, "--undo").output.startswith("taken back: drop")
    assert len(json.loads(call("review", tmp_path, "--json").output)["issues"]) == 1


def test_harvest_says_what_it_did_and_what_comes_next(ledger: Ledger, desk_folder: Path, tmp_path: Path) -> None:
    text, out = json.dumps([["user", "a new thing entirely"]]), tmp_path / "new.jsonl"
    ledger.append(row("chatcmpl-7", task="desk", stage="large", request_text=text, answer_text="card"))
    output = call("harvest", desk_folder, "--out", out).output
    assert output.startswith(f"1 rows for desk in {out}, from 1 responses\n")
    assert output.endswith(f"next: smallfirst run {desk_folder} --challenge\n")
    message = failed(call("run", desk_folder, "--challenge"), 1)
    assert "no model is registered as main.default.desk" in message
