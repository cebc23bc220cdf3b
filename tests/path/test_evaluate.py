"""Evaluation: finalists are fixed before a calibration or test row is answered, and nobody else answers them."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import task_of, things

from smallfirst.path import evaluate as stage
from smallfirst.path.evaluate import evaluate_stage
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FINALISTS, Finalists
from smallfirst.path.train import train_stage


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    return task_of(tmp_path, {"train": things(90)}, ladder=["words"])


def test_finalists_are_fixed_before_held_out_rows_are_answered_and_then_stay(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = train_stage(project)
    answered: list[tuple[str, str, bool]] = []
    measure = stage._evaluate

    async def watched(project: Any, folder: Any, model: Any, *, name: str, split: str, **more: Any) -> None:
        answered.append((name, split, (run_folder.path / FINALISTS).exists()))
        await measure(project, folder, model, name=name, split=split, **more)

    monkeypatch.setattr(stage, "_evaluate", watched)
    (found,) = evaluate_stage(project, run_folder)
    assert answered == [("words", "calibration", True), ("words", "test", True)]
    chosen = run_folder.evaluation("words", "choosing")
    assert chosen.accuracy.n == len(project.rows.development)
    assert chosen.cost_usd_per_1k > 0
    assert chosen.probes_ms == ()  # the final model has seen these rows: it is asked for its cost alone
    assert found.accuracy.n == len(project.rows.test)
    assert run_folder.evaluation("words", "selection") is None
    finalists = run_folder.find(Finalists, FINALISTS)
    assert finalists.names == ("words",)
    answered.clear()
    evaluate_stage(project, run_folder, resume=True)
    assert answered == []


def test_who_is_no_finalist_is_not_asked(project: Project) -> None:
    run_folder = train_stage(project)
    Finalists(names=(), shares={}).save(run_folder.path / FINALISTS)
    with pytest.raises(Exception, match="nothing has been evaluated"):
        evaluate_stage(project, run_folder)
    assert run_folder.evaluation("words", "choosing") is not None
    assert run_folder.evaluation("words", "calibration") is None
