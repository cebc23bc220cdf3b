"""The state of a task is found from its file: nothing depends on where one stands."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import smallfirst as sf
from smallfirst.interfaces.cli.main import main


def write_task(folder: Path) -> Path:
    folder.mkdir()
    rows = [f"{word} number {i},{label}" for i in range(30) for word, label in (("card", "cards"), ("fee", "fees"))]
    (folder / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "task.yaml").write_text(
        "data: {train: rows.csv}\nladder: [words]\nrouting: {small: words}\ngate: {accuracy_at_least: 0.5}\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is no project; without SMALLFIRST_HOME."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SMALLFIRST_HOME")
    return folder


def test_check_leaves_no_state_folder(work: Path) -> None:
    write_task(work / "tickets")
    assert sf.check("tickets").verdict in {"GO", "FIX"}
    assert CliRunner().invoke(main, ["check", "tickets"]).exit_code == 0
    assert CliRunner().invoke(main, ["evaluate", "tickets"]).exit_code == 1
    assert sorted(path.name for path in work.rglob("*")) == ["rows.csv", "task.yaml", "tickets"]


def test_keys_of_another_folder_are_not_taken_for_those_of_the_server(work: Path) -> None:
    write_task(work / "tickets")
    run = CliRunner()
    assert run.invoke(main, ["keys", "create", "desk"]).exit_code == 0
    refused = run.invoke(main, ["serve", "tickets"])
    assert refused.exit_code == 2
    assert f"the keys in {work}/.smallfirst/ledger.db are not this server's" in refused.output
    assert run.invoke(main, ["keys", "create", "desk", "--task", "tickets"]).exit_code == 0
    assert (work / "tickets" / ".smallfirst" / "ledger.db").is_file()
    assert "tickets has no champion" in run.invoke(main, ["serve", "tickets"]).output
