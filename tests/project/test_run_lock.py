"""One run of a task at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallfirst.errors import StageMissing, TrainingError
from smallfirst.paths import home, state_folder
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.run_lock import only_run, refuse_second_run, run_under_way

HOLDS = """
import sys
from smallfirst.project.run_lock import only_run
with only_run("desk"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_run() -> subprocess.Popen[str]:
    """Another process in a run of the task `desk`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_start_is_refused_by_process_and_time_until_the_first_is_dead(
    other_run: subprocess.Popen[str],
) -> None:
    with pytest.raises(TrainingError) as caught, only_run("desk"):
        pass
    said = json.loads((home() / "tasks" / "desk" / "run.lock").read_text())
    assert str(caught.value) == (
        f"a run of desk is under way (process {other_run.pid}, since {said['since'][:16].replace('T', ' ')} UTC)\n"
        "  next: wait until it ends, or stop that process"
    )
    with pytest.raises(TrainingError, match="a run of desk is under way"):
        refuse_second_run("desk")
    with pytest.raises(StageMissing, match=r"desk has no finished run: one is under way \(process"):
        RunFolder.latest("desk")
    with only_run("another"):
        pass
    other_run.kill()
    other_run.wait()
    assert run_under_way("desk") == ""
    with only_run("desk"):
        assert run_under_way("desk").startswith(f"process {os.getpid()}, since ")


def test_the_stages_of_one_run_share_its_hold() -> None:
    with only_run("desk"), only_run("desk"):
        pass
    assert run_under_way("desk") == ""


def test_asking_for_a_run_creates_nothing(tmp_path: Path) -> None:
    refuse_second_run("desk")
    assert not state_folder().exists()
