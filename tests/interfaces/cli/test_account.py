"""The verbs for the books: what is printed of a ledger and where its rows go, the statement."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallfirst.base.paths import ledger_place, state_of
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import ExpenseRow, LedgerRow
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.traffic.task_source import LEARNT, TakeOver, TakeOvers
from tests.deployment.billing.test_statement import fill
from tests.fixtures.cli import call, failed, measured

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with an answer and an expense."""
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.append(LedgerRow(id="a", at=NOON, served_name="t", status=200, latency_ms=1.0, cost_usd=0.25, task="t"))
    ledger.append(ExpenseRow(id="run", at=NOON, task="t", kind="training", cost_usd=2.0))
    ledger.close()
    return tmp_path / "ledger.db"


def test_it_says_what_a_ledger_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = call("ledger", "info", "--ledger", path).output
    assert told.startswith(f"{path}: 2026-11-27 to 2026-11-27 (UTC)\n")
    assert told.splitlines()[2].split() == ["answer", "1", "$0.2500", "0"]
    monkeypatch.setenv("SMALLFIRST_LEDGER", str(path))
    found = json.loads(call("ledger", "info", "--json").output)
    assert found["kinds"]["training"] == {"n": 1, "cost_usd": 2.0, "n_without_row": 0}


def test_rows_are_exported_and_copied(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    assert call("ledger", "export", out, "--since", "2026-11-27", "--ledger", path).output == f"1 answers in {out}\n"
    assert call("ledger", "export", out, "--until", "2026-11-27", "--ledger", path).output == f"0 answers in {out}\n"
    copied = call("ledger", "copy", path, tmp_path / "copy.db")
    assert copied.output.endswith(f"next: smallfirst serve --ledger {tmp_path / 'copy.db'}\n")


def test_a_password_in_a_command_line_is_refused(path: Path) -> None:
    told = failed(call("ledger", "info", "--ledger", "postgresql://ada:s3cret@localhost/books"), 2)
    assert "set PGPASSWORD" in told
    assert "s3cret" not in told


def test_a_month_is_written_shown_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(tmp_path / "ledger.db")
    fill(ledger)
    ledger.close()
    made = call("statement", "--month", "2026-11", "--ledger", "ledger.db")
    assert made.exit_code == 0, made.output
    assert "answers of small models     20  $0.20" in made.output
    assert "t: saved −$0.210 (95 %: −$0.210 to −$0.210): measured on 17 of them" in made.output
    assert "t: 3 of 20 drawn audits have no verdict (15%): " in made.output
    assert "wrote statement-2026-11/statement.html, rows.csv and statement.json" in made.output
    key = call("statement", "--public-key").output.strip()
    told = call("statement", "--verify", "statement-2026-11", "--public-key", key).output
    assert "statement-2026-11: 42 rows, all figures and the signature fit together\n" in told
    assert "statement.html was made anew from these figures: equal, byte for byte" in told
    assert f"signed by {key}, the key in the folder" in call("statement", "--verify", "statement-2026-11").output
    assert "Keep the API" in made.output
    as_json = call("statement", "--verify", "statement-2026-11", "--json")
    assert "byte for byte" in as_json.stderr
    read = json.loads(as_json.stdout)
    assert read["figures"]["savings"][0]["n_small"] == 20
    page = tmp_path / "statement-2026-11" / "statement.html"
    page.write_text(page.read_text().replace("<h1>", "<h1>Paid. "))
    assert "statement.html was changed" in failed(call("statement", "--verify", "statement-2026-11"), 2)


def test_a_statement_knows_a_task_by_the_name_that_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(ledger_place(create=True))
    fill(ledger)
    ledger.close()
    learnt = tmp_path / "discovered" / "t" / LEARNT
    learnt.mkdir(parents=True)
    (learnt / "task.yaml").write_text("name: t\ndata: {train: rows.jsonl}\n")
    TakeOvers().put(TakeOver(task="t", folder=learnt.parent))
    made = call("statement", "t", "--month", "2026-11")
    assert made.exit_code == 0, made.output
    assert "t: saved" in made.output
    assert "no such file" in failed(call("statement", "u", "--month", "2026-11"), 2)


def test_without_a_ledger_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    assert "no such ledger" in failed(call("statement", "--month", "2026-11"), 2)


@pytest.fixture
def evaluated_folder(desk_folder: Path) -> Path:
    """A task with a run whose small model was not timed."""
    with state_of(desk_folder):
        run = RunFolder.new("desk")
        (run.path / "run.json").write_text("{}")
        run.save_evaluation(measured(1))
    return desk_folder


def test_the_rate_is_the_evaluations_or_the_one_given(evaluated_folder: Path) -> None:
    missing = failed(call("plan", evaluated_folder), 2)
    assert "no rate of this task's model is known" in missing
    assert "--requests-per-s" in missing
    told = json.loads(call("plan", evaluated_folder, "--requests-per-s", "0.5", "--json").stdout)
    assert (told["requests_per_month"], told["source"]) == (1_000_000, "--requests-per-s")
    assert told["machines"] == 5  # 0.38 a second, 1.14 in the busiest hour, 2.28 with the headroom
    with state_of(evaluated_folder):
        run = RunFolder.latest("desk")
        run.save_evaluation(measured(1).model_copy(update={"requests_per_s": 400.0}))
    shown = call("plan", evaluated_folder, "--requests-per-month", "3e6")
    assert shown.exit_code == 0, shown.output
    assert "3,000,000 requests a month, 3.42/s in the busiest hour" in shown.stdout
    assert 'one answers 400/s (the last evaluation of "small", without HTTP and ledger)' in shown.stdout
