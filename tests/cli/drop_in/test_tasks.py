"""`smallfirst tasks` is a verb of the stage "drop in"; what it prints is tested with the table (tests/gateway)."""

from __future__ import annotations

from smallfirst.cli.main import STAGES
from tests.fixtures.cli import call


def test_without_any_task_it_names_the_next_command(tmp_path):
    assert "tasks" in STAGES["drop in"]
    result = call("tasks", tmp_path)
    assert result.exit_code == 0
    assert result.output.startswith("no task yet\nnext: smallfirst discover")
