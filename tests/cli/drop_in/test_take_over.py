"""`take-over` and `give-back` change one task of the state folder's file, and name the next command."""

from __future__ import annotations

from click.testing import CliRunner

from smallfirst.cli.main import main
from smallfirst.gateway.takeover.takeovers import TakeOver, TakeOvers


def test_a_task_is_taken_over_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    TakeOvers().put(TakeOver(task="tickets", folder=tmp_path, version=1))
    run = CliRunner().invoke(main, ["take-over", "tickets", "--share", "0.25"])
    assert run.exit_code == 0
    assert "25%" in run.output
    assert "smallfirst give-back tickets" in run.output
    assert TakeOvers().get("tickets").live_share == 0.25
    assert CliRunner().invoke(main, ["give-back", "tickets"]).exit_code == 0
    assert TakeOvers().get("tickets").state == "shadow"


def test_what_was_not_learnt_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    run = CliRunner().invoke(main, ["take-over", "tickets"])
    assert run.exit_code == 2
    assert "smallfirst learn discovered/tickets" in run.output
    shares = CliRunner().invoke(main, ["take-over", "tickets", "--share", "1.5"])
    assert shares.exit_code == 2


def test_a_folder_without_a_source_is_refused(tmp_path):
    run = CliRunner().invoke(main, ["learn", str(tmp_path)])
    assert run.exit_code == 2
    assert "source.json" in run.output
    assert "smallfirst discover" in run.output
