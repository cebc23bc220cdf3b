"""A run that was killed goes on to the very weights of an unbroken one; one that was asked to stop stops."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from fixtures.training import Killed, event_kinds, fine_tune, killing

from smallfirst.base.errors import Cancelled, TrainingError
from smallfirst.data.dataset import Dataset
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig
from smallfirst.training.loop import CheckpointStore, StepMetrics
from smallfirst.training.recipe import Recipe, TaskRecipe, ValidationResult
from smallfirst.training.run import CANCEL_FILE, Run

FullDisk = Callable[[int], AbstractContextManager[None]]
pytestmark = pytest.mark.usefixtures("module_home")
CONFIG = TrainConfig(duration="4ep", learning_rate=3e-3, batch_tokens=64, max_seq_tokens=64)


class Bench:
    def __init__(self, recipe: Recipe, base: Path) -> None:
        self.recipe, self.base = recipe, base

    def train(self, folder: Path, config: TrainConfig = CONFIG, **more: Any) -> Run:
        return fine_tune(self.recipe, config, self.base, folder, **more)


@pytest.fixture(scope="module")
def bench(toy_task: Classify, toy_rows: Dataset, toy_selection: Dataset, tiny_folder: Path) -> Bench:
    return Bench(TaskRecipe(toy_task, toy_rows, toy_selection), tiny_folder)


@pytest.fixture(scope="module")
def unbroken(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return bench.train(tmp_path_factory.mktemp("unbroken"))


def weights(run: Run) -> bytes:
    return (run.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("at", [2, 9])
def test_a_broken_run_reaches_the_weights_of_an_unbroken_one(
    bench: Bench, unbroken: Run, tmp_path: Path, at: int
) -> None:
    with pytest.raises(Killed):
        bench.train(tmp_path, on_step=killing(at), save_every_s=0)
    assert CheckpointStore(tmp_path / "checkpoint").latest() is not None
    run = bench.train(tmp_path)
    assert weights(run) == weights(unbroken)
    assert (run.validation_curve, run.loss_curve) == (unbroken.validation_curve, unbroken.loss_curve)
    assert run.best_epoch == unbroken.best_epoch
    assert "RESUMED" in event_kinds(tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_the_adapters_of_a_broken_run_are_taken_up_as_well(bench: Bench, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"method": "lora", "lora_rank": 4, "duration": "2ep"})
    whole = bench.train(tmp_path / "whole", config)
    with pytest.raises(Killed):
        bench.train(tmp_path / "broken", config, on_step=killing(4), save_every_s=0)
    assert weights(bench.train(tmp_path / "broken", config)) == weights(whole)


def test_a_finished_run_is_not_trained_again_and_leaves_no_checkpoint(bench: Bench, unbroken: Run) -> None:
    left = unbroken.folder.parent / "checkpoint" / "step-9"  # as by a kill between run.json and the tidying
    left.mkdir(parents=True)
    assert bench.train(unbroken.folder.parent, on_step=killing(1)) == unbroken
    assert not left.parent.exists()


def test_a_checkpoint_of_another_run_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        bench.train(tmp_path, on_step=killing(3), save_every_s=0)
    with pytest.raises(TrainingError, match="is of another run: its rows, settings or base model differ"):
        bench.train(tmp_path, CONFIG.model_copy(update={"seed": 1}))
    other = shutil.copytree(bench.base, tmp_path / "base")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(TrainingError, match="is of another run"):
        Bench(bench.recipe, other).train(tmp_path)


def test_a_run_that_is_cancelled_stops_within_one_step(bench: Bench, tmp_path: Path) -> None:
    seen: list[int] = []

    def cancel(step: StepMetrics) -> None:
        seen.append(step.step)
        if step.step == 3:
            (tmp_path / CANCEL_FILE).touch()

    with pytest.raises(Cancelled, match="cancelled at step 3 of"):
        bench.train(tmp_path, on_step=cancel)
    assert seen == [1, 2, 3]
    assert event_kinds(tmp_path)[-1] == "STOPPED"


class Graded:
    """The recipe, with grades given in advance instead of an exam."""

    def __init__(self, recipe: TaskRecipe, grades: list[float]) -> None:
        self.name, self.train_rows, self.backend = recipe.name, recipe.train_rows, recipe.backend
        self.prepare, self.grades = recipe.prepare, iter(grades)

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        return ValidationResult(next(self.grades), manifest)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (None, 7)])
def test_patience_ends_a_run_that_no_longer_gets_better(
    bench: Bench, tmp_path: Path, patience: int | None, epochs: int
) -> None:
    graded = Bench(Graded(bench.recipe, [0.5, 0.6, 0.4, 0.7, 0.6, 0.6, 0.6]), bench.base)
    run = graded.train(tmp_path, CONFIG.model_copy(update={"duration": "7ep", "patience": patience}))
    assert len(run.validation_curve) == epochs
    assert run.best_epoch == (2 if epochs == 3 else 4)


def test_a_model_that_cannot_be_saved_leaves_the_one_before(bench: Bench, tmp_path: Path, full_disk: FullDisk) -> None:
    first = bench.train(tmp_path / "first", CONFIG.model_copy(update={"duration": "1ep"}))
    before = weights(first)
    (first.folder.parent / "run.json").unlink()

    def fill(step: StepMetrics) -> None:
        if step.ends_epoch:
            disk.enter_context(full_disk(30_000))

    short = CONFIG.model_copy(update={"duration": "1ep"})
    with ExitStack() as disk, pytest.raises(TrainingError, match=r"cannot write to .*") as caught:
        bench.train(first.folder.parent, short, on_step=fill)
    assert "run the same command again to continue" in str(caught.value)
    assert weights(first) == before
    assert read_manifest(first.folder).base == "toys/tiny"
    assert not (first.folder.parent / "model.draft").exists()
