"""Trials of other settings: a real fine-tune of a tiny encoder, and what stops and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallfirst.paths import state_of
from smallfirst.pipeline.ladder.trials import TRIALS, Trials, best_score, load_run
from smallfirst.progress import Progress
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file

TUNED = get_candidate("tuned")


@pytest.fixture
def project(tmp_path: Path, tiny_encoder_folder: Path) -> Project:
    """A label by the first word; a rate of 0.9 destroys what the head began with."""
    words = ["card", "fee", "loan", "rate"]
    rows = [{"text": f"{words[i % 4]} number {i % 9} of {i}", "label": words[i % 4]} for i in range(60)]
    for name, part in (("train", rows[:24]), ("validation", rows[24:56]), ("test", rows[56:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    training = {"duration": "2ep", "learning_rate": 0.9, "batch_tokens": 256, "max_seq_tokens": 32, "patience": None}
    values = {
        "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        "small": {"encoder": str(tiny_encoder_folder), "encoder_training": training},
        "routing": {"selection_share": 0.5},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(values))
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


def test_settings_are_tried_and_the_better_model_is_kept(project: Project) -> None:
    with state_of(project.file.folder):
        run_folder = RunFolder.new(project.file.name)
        TUNED.fit(project, run_folder)
        first = load_run(TUNED, run_folder)
        trials = Trials(project, TUNED, run_folder)
        tried = list(trials.settings())
        assert [config.learning_rate for config in tried] == pytest.approx([0.5, 0.3, 0.9])
        assert [config.duration for config in tried] == ["2ep", "2ep", "4ep"]
        seen: list[int] = []
        worse = trials.run(first.config, lambda epoch, score: bool(seen.append(epoch)))
        assert seen == [1, 2]
        assert (worse.run_id == first.run_id, load_run(TUNED, run_folder)) == (False, first)  # no better, so not kept
        better = first.config.model_copy(update={"learning_rate": 1e-5, "duration": "6ep"})
        found = trials.run(better, lambda epoch, score: epoch == 3)
    assert len(found.validation_curve) == 3
    assert best_score(found) > best_score(first)
    kept = load_run(TUNED, run_folder)
    assert (kept.run_id, kept.config) == (found.run_id, better)
    assert trials.best == kept
    assert json.loads((run_folder.model_folder("tuned") / "smallfirst.json").read_text())["kind"] == "encoder"
    assert list((run_folder.path / TRIALS).iterdir()) == []
    assert not list(run_folder.path.glob("*.before"))


def test_a_trial_that_falls_behind_is_ended(project: Project) -> None:
    with state_of(project.file.folder):
        run_folder = RunFolder.new(project.file.name)
        good = project.file.small.encoder_training.model_copy(update={"learning_rate": 1e-5, "duration": "6ep"})
        small = project.file.small.model_copy(update={"encoder_training": good})
        TUNED.fit(project._replace(file=project.file.model_copy(update={"small": small})), run_folder)
        trials = Trials(project, TUNED, run_folder)
        poor = trials.run(good.model_copy(update={"learning_rate": 0.9}), lambda *_: False)
    assert len(poor.validation_curve) == 2  # a third of six epochs: the first look
    assert load_run(TUNED, run_folder).config == good
