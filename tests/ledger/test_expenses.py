"""Money spent once is in the ledger once, however often it is reported."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from smallfirst.base.paths import home
from smallfirst.ledger.expenses import note_expense, note_recording
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import ExpenseRow


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))


def expenses() -> list[tuple[str, str, float, float]]:
    """Task, kind, USD and busy seconds of each expense in the ledger."""
    with closing(Ledger(home() / "ledger.db")) as ledger:
        return [(row.task, row.kind, row.cost_usd, row.busy_s) for row in ledger.entries(ExpenseRow)]


def test_only_what_is_new_is_added() -> None:
    for usd, seconds in ((1.0, 60.0), (1.0, 60.0), (1.5, 100.0)):
        note_expense("t", "training", "run-1", usd, busy_s=seconds)
    note_expense("t", "training", "run-10", 4.0)
    note_expense("u", "training", "run-1", 2.0)
    note_expense("t", "labelling", "free", 0.0)
    assert expenses() == [
        ("t", "training", 1.0, 60.0), ("t", "training", 0.5, 40.0), ("t", "training", 4.0, 0.0),
        ("u", "training", 2.0, 0.0),
    ]  # fmt: skip


def test_a_recording_counts_as_its_answers_cost(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    note_recording("t", "evaluation", path)
    answer = {"text": "q", "answer": "a", "prompt_tokens": 1, "completion_tokens": 1, "latency_ms": 1.0}
    header = {"model": "m", "made_at": "2026-11-27", "smallfirst": "1", "n": 3}
    lines = [{"recorded": header}, *({"key": str(i), "cost_usd": 0.25, **answer} for i in range(3))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    note_recording("t", "labelling", path)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    note_recording("t", "evaluation", path)
    assert [row[1:3] for row in expenses()] == [("labelling", 0.5), ("evaluation", 0.25)]


def test_a_ledger_that_takes_no_row_does_not_end_the_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state" / "ledger.db").mkdir(parents=True)
    note_expense("t", "training", "run-1", 1.5)
    assert "t: training of run-1 is not in the ledger: $1.500000" in caplog.text
