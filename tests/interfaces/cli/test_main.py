"""The command line: verbs by stage of work, errors without a traceback, exit codes for scripts."""

import errno
import re
import shlex
from pathlib import Path

import click
import pytest
from fixtures.cli import call, failed

from smallfirst.base.errors import TrainingError
from smallfirst.interfaces.cli.main import COMMANDS, STAGES, main

VERBS = COMMANDS.names()
READ_NO_TASK = set(STAGES["drop in"]) | {"init", "models", "explain", "keys", "jobs", "ledger"}
READ_NO_TASK |= {"demo", "doctor", "mcp"}


def test_help_lists_the_verbs_by_stage_of_work_in_the_order_of_the_path() -> None:
    result = call("--help")
    assert result.exit_code == 0
    sections = re.split(r"^(\w[\w ]*):\n", result.output, flags=re.MULTILINE)[3:]
    listed = {
        name.lower(): tuple(re.findall(r"^  ([a-z-]+) ", text, flags=re.MULTILINE))
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }
    assert listed == STAGES


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in READ_NO_TASK])
def test_a_missing_file_is_a_wrong_setting(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    signed = ("--candidate", "small", "--by", "Ada", "--because", "seen")
    more = {"override": signed, "label": ("rows.jsonl",), "score": ("rows.jsonl",), "export": ("out",)}
    assert failed(call(verb, path, *more.get(verb, ())), 2) == (
        f"ConfigError: {path}: no such file\n  next: smallfirst init   writes a commented task.yaml\n"
    )


def test_a_wrong_setting_is_told_with_a_suggestion(desk_folder: Path) -> None:
    (desk_folder / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl}\nruting: {}\n")
    message = failed(call("check", desk_folder), 2)
    assert (
        message == f'ConfigError: {desk_folder / "task.yaml"}:\n  ruting: unknown setting — did you mean "routing"?\n'
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_of_a_verbs_help_is_a_command_line_that_is_understood(verb: str) -> None:
    examples = getattr(COMMANDS.get(verb), "examples", ())
    assert examples
    shown = call(verb, "--help").output
    for example in examples:
        assert f"  {example}\n" in shown
        program, *words = shlex.split(example.partition(" >")[0])
        assert program == "smallfirst"
        command: click.Command = main
        while isinstance(command, click.Group) and words:
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None
            command = found
        command.make_context(command.name, words)


def test_a_full_disk_is_told_without_a_traceback(desk_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", "a.json")

    def torn(*_: object, **__: object) -> None:
        raise TrainingError("cannot write to model: No space left on device")

    monkeypatch.setattr("smallfirst.path.project.scaffold.write_atomically", full)
    monkeypatch.setattr("smallfirst.path.run.train_stage", torn)
    told = failed(call("init", str(desk_folder / "new"), "--from", str(desk_folder / "train.jsonl")), 1)
    assert told.startswith("DiskFull: a.json cannot be written: its disk is full\n  next: make room there (")
    assert f"\n          smallfirst run {desk_folder} --resume\n" in failed(call("run", desk_folder), 1)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(desk_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smallfirst.path.run.try_run", press)
    monkeypatch.setattr("smallfirst.interfaces.cli.path.load_run", press)
    assert failed(call("run", desk_folder), 130) == (
        f"\ninterrupted; what was done or answered is kept\n  next: smallfirst run {desk_folder} --resume\n"
    )
    assert failed(call("evaluate", desk_folder), 130) == "\ninterrupted; what was done or answered is kept\n"
