"""How long candidates take, from made-up rates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from smallfirst.errors import WeightsNotFound
from smallfirst.pipeline.ladder import times
from smallfirst.pipeline.ladder.times import TimeNeeded, time_needed
from smallfirst.progress import Progress
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file
from smallfirst.training import pace
from smallfirst.training.estimates import Pace
from smallfirst.training.hardware import EncoderPace


@pytest.fixture
def project(tmp_path: Path, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """100 rows, 20 selection, 60 calibration and 40 test rows."""
    monkeypatch.setattr(times, "encoder_pace", lambda folder, texts: EncoderPace(0.1, 0.4, 32, 1_000_000))
    rows = [{"text": f"number {i} {i % 7}", "label": ["card", "fee"][i % 2]} for i in range(220)]
    for name, part in (("train", rows[:100]), ("validation", rows[100:180]), ("test", rows[180:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    values: dict[str, Any] = {
        "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        "small": {
            "base": "no-such-model",
            "encoder": str(tiny_encoder_folder),
            "encoder_training": {"duration": "4ep", "batch_tokens": 320},
        },
        "routing": {"selection_share": 0.25},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(values))
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


@pytest.fixture
def many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection rows choose, as with 1,000 rows and more."""
    monkeypatch.setattr(times, "fits_in_folds", lambda project: False)


@pytest.mark.usefixtures("many_rows")
def test_a_frozen_encoder_reads_every_row_and_once_more_for_the_learning_curve(project: Project) -> None:
    found = time_needed(project, get_candidate("encoder"))
    assert found is not None
    n_selection, n_held_out = len(project.rows.selection), 80 - len(project.rows.left_out) + 40
    fit_s = 100 * (0.1 + times.REGRESSION_S)
    assert found.fit_s(0) == pytest.approx(fit_s + 0.1 * n_selection)
    assert found.after_s == pytest.approx(0.1 * n_held_out + fit_s)


@pytest.mark.usefixtures("many_rows")
def test_a_fine_tune_takes_its_epochs_with_validation_and_updates(project: Project) -> None:
    found = time_needed(project, get_candidate("tuned"))
    assert found is not None
    assert found.epochs == 4
    # 3,200 tokens in batches of 320 are passed over three times an epoch: thirty updates of 40 bytes for each of a
    # million weights at 20 GB/s.
    assert found.epoch_s == pytest.approx(300 * 0.4 + 30 * 40e6 / 20e9 + 0.1 * len(project.rows.selection))


def test_few_rows_are_fitted_once_for_each_fold_and_once_together(project: Project) -> None:
    encoder, tuned = time_needed(project, get_candidate("encoder")), time_needed(project, get_candidate("tuned"))
    assert encoder is not None
    assert tuned is not None
    n = 100 + len(project.rows.selection)
    assert encoder.fit_s(0) == pytest.approx(2 * n * 0.1 + 5 * n * times.REGRESSION_S)
    assert tuned.begin_s == pytest.approx(4 * (times.BEGIN_S + n * (0.1 + times.REGRESSION_S)))
    whole, part = 2 * n, 4 * n * 2 / 3  # so many passes make thirty updates of an epoch
    steps = (32 * whole / 320, 32 * part / 320)
    updates_s = (math.ceil(steps[0]) + 3 * math.ceil(steps[1])) * 40e6 / 20e9
    assert tuned.epoch_s == pytest.approx((whole + 3 * part) * 0.4 + updates_s + n * 0.1)


def test_a_language_model_takes_what_its_estimate_says(
    project: Project, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsNotFound):
        time_needed(project, get_candidate("small"))
    small = project.file.small.model_copy(update={"base": str(tiny_folder)})
    project = project._replace(file=project.file.model_copy(update={"small": small}))
    found = []
    for rate in (100.0, 400.0):
        monkeypatch.setattr(pace, "training_pace", lambda *_, rate=rate: Pace(rate, ""))
        found.append(time_needed(project, get_candidate("small")) or TimeNeeded(0))
    assert found[0].epochs == 5
    assert found[0].epoch_s == pytest.approx(4 * found[1].epoch_s)
    assert found[1].after_s > 0
    assert found[0].after_s == pytest.approx(4 * found[1].after_s)


def test_the_base_model_does_not_say_how_long_it_takes(project: Project) -> None:
    assert time_needed(project, get_candidate("base")) is None
    assert time_needed(project, get_candidate("words")) == TimeNeeded(pytest.approx(0.9), after_s=pytest.approx(0.18))
