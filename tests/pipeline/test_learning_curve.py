"""The learning curve: nested parts, the run's own evaluation as its end, and a forecast or a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallfirst.evaluation.learning_curve import LearningCurve, LearningPoint
from smallfirst.pipeline.candidates.language_model import config_for_part
from smallfirst.pipeline.learning_curve import forecast_lines, measure_curve
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file
from smallfirst.stats.intervals import wilson
from smallfirst.training.config import TrainConfig

THINGS = {"card": ("card", "envelope", "parcel"), "fee": ("fee", "charge", "price"), "pin": ("pin", "code", "secret")}


@pytest.fixture
def project(tmp_path: Path, tiny_folder: Path) -> Project:
    """120 separable rows of three labels, and a tiny model to fine-tune."""
    rows = [
        {"text": f"{frame} {word} number {i}", "label": label}
        for i, frame in enumerate(("where is my", "what about the", "please send the", "I lost a"))
        for label, words in THINGS.items()
        for word in (*words, *(f"{w}s" for w in words), *(f"new {w}" for w in words), f"old {label}")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = {
        "name": "desk",
        "data": {"train": "train.jsonl"},
        "ladder": ["words", "small"],
        "small": {"base": str(tiny_folder), "training": {"duration": "1ep"}},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


def test_each_part_is_a_point_and_what_was_measured_earlier_stays(project: Project) -> None:
    run_folder = RunFolder.new("desk")
    old = LearningPoint(n_rows=7, candidate="small", accuracy=wilson(1, 2))
    older = LearningPoint(n_rows=9, candidate="words", accuracy=wilson(1, 2))
    LearningCurve(points=(old, older)).save(run_folder.path / "learning.json")
    curve = measure_curve(project, run_folder)
    assert LearningCurve.load(run_folder.path / "learning.json") == curve
    assert curve.points[0] == old
    words = [p for p in curve.points if p.candidate == "words"]
    assert [p.n_rows for p in words] == [15, 30]  # 5 and 10 of each label; there are fewer than 30
    assert all(p.accuracy.n == len(project.rows.test) for p in words)
    assert words[1].accuracy.value > 0.6  # one word says the label


def test_a_fine_tuned_point_leaves_no_weights_behind(project: Project) -> None:
    run_folder = RunFolder.new("desk")
    curve = measure_curve(project, run_folder, all_candidates=True)
    assert [p.n_rows for p in curve.points if p.candidate == "small"] == [15, 30]
    assert not list((run_folder.path / "learning").glob("*"))


def test_a_part_is_trained_for_as_many_steps_but_ten_epochs_at_most() -> None:
    config = TrainConfig(duration="2ep")
    assert config_for_part(config, 50, 100).duration == "4ep"
    assert config_for_part(config, 1, 100).duration == "10ep"
    assert config_for_part(TrainConfig(duration="300ba"), 60, 100).duration == "2ep"


def test_too_few_points_give_a_reason_instead_of_a_number() -> None:
    points = tuple(LearningPoint(n_rows=n, candidate="words", accuracy=wilson(n, 100)) for n in (10, 60))
    (line,) = forecast_lines(LearningCurve(points=points), 60)
    assert line.startswith("words: 3 numbers of rows are needed")
