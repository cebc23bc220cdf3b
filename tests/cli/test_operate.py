"""What doctor prints, and shell completion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.cli import call, failed

from smallfirst.cli.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_this_program(shell: str) -> None:
    script = call("completion", shell).stdout
    assert f"_SMALLFIRST_COMPLETE={shell}_complete" in script


def test_verbs_and_options_are_completed() -> None:
    def completed(words: str) -> list[str]:
        asked = {"_SMALLFIRST_COMPLETE": "fish_complete", "COMP_WORDS": words, "COMP_CWORD": words.split(" ")[-1]}
        lines = CliRunner(env=asked).invoke(main, prog_name="smallfirst").output.splitlines()
        return [line.removeprefix("plain,").partition("\t")[0] for line in lines]

    assert completed("smallfirst prom") == ["promote"]
    assert completed("smallfirst gate --js") == ["--json"]


def test_doctor_prints_a_line_for_each_thing_and_the_next_command_with_the_task_as_typed(desk_folder: Path) -> None:
    (desk_folder / "task.yaml").write_text(
        "name: desk\ndata: {train: train.jsonl}\nladder: [words]\n"
        "large: {endpoint: {base_url: http://127.0.0.1:9/v1, model: m}}\n"
    )
    result = call("doctor", desk_folder)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split()[:2] == ["ok", "python"]
    assert lines[-1] == f"      next: smallfirst doctor {desk_folder} --ask-large   asks for its list of models"
    assert [one["name"] for one in json.loads(call("doctor", desk_folder, "--json").stdout)][-1] == "large model"
    assert "no answer" in call("doctor", desk_folder, "--ask-large").output


def test_doctor_ends_with_one_where_something_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "file"))
    monkeypatch.chdir(tmp_path)
    failed(call("doctor"), 1)
