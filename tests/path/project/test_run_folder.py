"""Run folders: which run is resumed, and which candidate of it is exported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallfirst.base.errors import StageMissing, TrainingError
from smallfirst.base.paths import home, state_folder
from smallfirst.path.project.run_folder import (
    FITTED,
    FittedCandidates,
    Promotion,
    RunFolder,
    only_run,
    refuse_second_run,
    run_under_way,
)


def run_of(*fitted: str, ladder: tuple[str, ...] = ("words", "small"), run_id: str | None = None) -> RunFolder:
    run_folder = RunFolder.new("desk")
    FittedCandidates(ladder=ladder, fitted=fitted, mlflow_run_id=run_id).save(run_folder.path / FITTED)
    return run_folder


def test_a_run_is_finished_when_every_candidate_is_fitted_and_open_until_its_report_is_written() -> None:
    run_folder = run_of("words")
    with pytest.raises(StageMissing, match="desk has no finished run"):
        RunFolder.latest("desk")
    FittedCandidates(ladder=("words",), fitted=("words",), mlflow_run_id="7").save(run_folder.path / FITTED)
    assert RunFolder.latest("desk").path == run_folder.path
    assert run_folder.mlflow_run_id() == "7"
    assert RunFolder.unfinished("desk") is not None
    (run_folder.path / "report.html").write_text("")
    assert RunFolder.unfinished("desk") is None


def test_the_candidate_that_went_live_is_exported_else_the_largest_that_is_fitted() -> None:
    run_folder = run_of("words", "small", run_id="7")
    for name in ("words", "small"):
        run_folder.model_folder(name).mkdir()
    assert run_folder.live_candidate() == "small"
    promotion = Promotion(name="main.default.desk", version=1, candidate="words", at="2026-11-27T00:00:00+00:00")
    promotion.save(run_folder.path / "promoted.json")
    assert run_folder.live_candidate() == "words"


HOLDS = """
import sys
from smallfirst.path.project.run_folder import only_run
with only_run("desk"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_run() -> subprocess.Popen[str]:
    """Another process in a run of the task `desk`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=-1, stdout=-1, text=True)
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
