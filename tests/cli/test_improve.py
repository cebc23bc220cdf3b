"""Label errors and harvested rows on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from fixtures.cli import call, evaluated, failed, row

from smallfirst.serving.ledger.ledger import Ledger


def test_suspects_are_exported(desk_folder: Path, tmp_path: Path) -> None:
    evaluated(wrong=30)
    result = call("suspects", desk_folder, "--out", tmp_path / "suspects.jsonl")
    assert result.exit_code == 0
    assert result.output == f"no probable label errors: label more rows\nnext: smallfirst run {desk_folder}\n"
    assert (tmp_path / "suspects.jsonl").exists()


def test_harvest_says_what_it_did_and_what_comes_next(ledger: Ledger, tmp_path: Path) -> None:
    rows = [{"text": f"question {word}", "label": label} for word in "abc" for label in ("yes",)]
    rows += [{"text": "nothing like it", "label": "no"}]
    for name in ("train", "validation", "test"):
        texts = "".join(json.dumps(r | {"text": f"{r['text']} of {name}"}) + "\n" for r in rows)
        (tmp_path / f"{name}.jsonl").write_text(texts, encoding="utf-8")
    task = tmp_path / "task.yaml"
    data = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    task.write_text(json.dumps({"name": "toy", "data": data}), encoding="utf-8")
    text = json.dumps([["user", "a new thing entirely"]])
    ledger.append(row("chatcmpl-7", stage="large", request_text=text, answer_text="yes"))
    ledger.append(row("chatcmpl-8", stage="large"))
    out = tmp_path / "new.jsonl"
    output = call("harvest", task, "--out", out).output
    assert output.startswith(f"1 rows for toy in {out}, from 2 responses\n       1  answered by the large model\n")
    assert "left out: 1 whose texts were not stored" in output
    assert output.endswith(f"next: smallfirst challenge {task} --rows {out}\n")
    assert json.loads(out.read_text()) == {
        "text": "a new thing entirely",
        "label": "yes",
        "source": "large",
        "response_id": "chatcmpl-7",
    }
    again = tmp_path / "b.jsonl"
    late = call("harvest", task, "--out", again, "--since", "2026-01-02T13:30+01:00", "--json").output
    assert json.loads(late)["n_rows"] == 0  # half an hour after noon
    assert "no date or time in ISO 8601" in failed(call("harvest", task, "--since", "yesterday"), 2)
    message = failed(call("challenge", task, "--rows", out), 1)
    assert "no model is registered as main.default.toy" in message
