"""train(): a model folder that answers, a curve in a real MLflow store; a run that was killed goes on to the end."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.rows import example
from fixtures.training import Bench, Killed, answers, event_kinds, fine_tune, killing
from safetensors.torch import load_file

from smallfirst.base.errors import Cancelled, DataError, TrainingError
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.out_of_fold import best_epoch
from smallfirst.models.local.tokenizer import choose_label_tokens
from smallfirst.models.local.weights import load_causal, weights_fingerprint
from smallfirst.models.manifest import Manifest, base_sha256, read_manifest
from smallfirst.registry.runs import client
from smallfirst.training import causal_lm
from smallfirst.training.config import TrainConfig, ValidationResult
from smallfirst.training.events import EventLog
from smallfirst.training.loop import CheckpointStore, StepMetrics
from smallfirst.training.precision import ChosenPrecision
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import CANCEL_FILE, Run

pytestmark = pytest.mark.usefixtures("module_home")
FullDisk = Callable[[int], AbstractContextManager[None]]
SHORT = TrainConfig(duration="4ep", learning_rate=3e-3, batch_tokens=64, max_seq_tokens=64)
FULL = TrainConfig(duration="210ba", learning_rate=3e-3, batch_tokens=40, max_seq_tokens=64)
LORA = TrainConfig(method="lora", duration="14ep", learning_rate=2e-2, batch_tokens=64, max_seq_tokens=64, lora_rank=4)


@pytest.fixture(scope="module")
def full(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[StepMetrics]]:
    steps: list[StepMetrics] = []
    return bench.train(FULL, tmp_path_factory.mktemp("full"), on_step=steps.append), steps


def accuracy(folder: Path, data: Dataset) -> float:
    found = answers(folder, *(example.text for example in data.examples))
    right = [a.text == e.answer for a, e in zip(found, data.examples, strict=True)]
    return sum(right) / len(right)


def latest_status(folder: Path) -> str:
    store = client()
    (experiment,) = store.search_experiments(filter_string="name = 'toy'")
    runs = store.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{folder.name}'")
    return str(runs[0].info.status)


def test_the_run_tells_what_was_trained_on_what(full: tuple[Run, list[StepMetrics]], bench: Bench) -> None:
    run, steps = full
    assert (run.task, run.base, run.config, run.n_train) == ("toy", "toys/tiny", FULL, 48)
    assert run.dataset_fingerprint == bench.rows.content_fingerprint
    assert run.base_sha256 == read_manifest(run.folder).base_sha256 == base_sha256(bench.base) != ""
    assert run.seconds > 0
    assert run.tokens_per_s == steps[-1].tokens_per_s
    assert Run.load(run.folder.parent / "run.json") == run
    assert len(steps) == 210
    assert run.loss_curve == tuple((s.step, s.loss) for s in steps)[::2]  # at most 200 points
    assert run.loss_curve[-1][1] < 0.1 * run.loss_curve[0][1]
    epochs, accuracies = zip(*run.validation_curve, strict=True)
    assert epochs == tuple(float(n) for n in range(1, len(epochs) + 1))
    assert run.best_epoch == best_epoch(accuracies, len(bench.selection))
    assert accuracies[0] < max(accuracies)


def test_a_second_training_in_the_same_folder_is_refused(bench: Bench, tmp_path: Path) -> None:
    def second(step: StepMetrics) -> None:
        if step.step in (1, 3):
            with pytest.raises(TrainingError, match="another process is training"):
                bench.train(short, tmp_path / "shared")

    short = FULL.model_copy(update={"duration": "4ba"})
    bench.train(short, tmp_path / "shared", on_step=second)
    assert event_kinds(tmp_path / "shared").count("COMPLETED") == 1
    assert bench.train(short, tmp_path / "shared").best_epoch == 1  # once it has ended its run is read again


def test_the_folder_is_a_model_that_answers_as_well_as_it_was_judged(
    full: tuple[Run, list[StepMetrics]], bench: Bench
) -> None:
    run, _ = full
    best = max(value for _, value in run.validation_curve)
    assert best > 0.7
    assert accuracy(run.folder, bench.selection) == best
    for answer in answers(run.folder, *(row.text for row in bench.rows.examples)):
        assert answer.text in bench.task.labels
        assert 0.25 < (answer.confidence or 0) <= 1
    manifest = read_manifest(run.folder)
    model, tokenizer = load_causal(run.folder)
    assert (manifest.kind, manifest.base, manifest.max_tokens) == ("label_tokens", "toys/tiny", 64)
    assert manifest.label_tokens == choose_label_tokens(bench.task.labels, tokenizer)
    assert manifest.weights_fingerprint == weights_fingerprint(model)
    assert manifest.temperature != 1.0


def test_events_and_mlflow_tell_the_run_from_creation_to_completion(full: tuple[Run, list[StepMetrics]]) -> None:
    run, steps = full
    epochs = ["EPOCH_FINISHED"] * len(run.validation_curve)
    assert event_kinds(run.folder.parent) == ["CREATED", "TRAIN_STARTED", *epochs, "COMPLETED"]
    events = EventLog(run.folder.parent / "events.jsonl").read()
    assert events[0].message == "fine-tune of toys/tiny on 48 rows"
    assert events[0].values["config"] == FULL.model_dump()
    assert events[1].values == {"steps": 210, "precision": run.precision[:4]}
    assert events[1].message == f"210 steps in {run.precision}; {torch.get_num_threads()} threads"
    values = [value for _, value in run.validation_curve]
    assert [event.values["validation_score"] for event in events[2:-1]] == values
    store = client()
    assert store.get_run(run.run_id).info.status == "FINISHED"
    losses = store.get_metric_history(run.run_id, "loss")
    assert [(p.step, p.value) for p in losses] == [(s.step, s.loss) for s in steps]
    judged = store.get_metric_history(run.run_id, "validation_score")
    assert [p.value for p in judged] == values
    assert judged[-1].step == 210


def test_a_model_that_learns_in_fp32_is_kept_in_bf16_and_answers_as_judged(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "fastest_precision", lambda *_: ChosenPrecision("fp32", "fp32"))
    learnt_in = set()

    def note(model: Any, *rest: Any, loss: Any = causal_lm.target_loss) -> torch.Tensor:
        learnt_in.add(model.dtype)
        return loss(model, *rest)

    monkeypatch.setattr(causal_lm, "target_loss", note)
    found = bench.train(FULL.model_copy(update={"duration": "20ba"}), tmp_path / "run")
    assert learnt_in == {torch.float32}
    assert {t.dtype for t in load_file(found.folder / "model.safetensors").values()} == {torch.bfloat16}
    assert accuracy(found.folder, bench.selection) == max(value for _, value in found.validation_curve)


def test_a_lora_run_moves_the_linear_layers_of_the_blocks_alone_and_ends_in_a_plain_model_that_answers_as_judged(
    bench: Bench, tmp_path: Path
) -> None:
    run = bench.train(LORA, tmp_path / "lora")
    best = max(value for _, value in run.validation_curve)
    assert best > 0.5
    assert accuracy(run.folder, bench.selection) == pytest.approx(best, abs=1 / 24)  # bf16 rounding
    assert not list(run.folder.glob("*adapter*"))
    before, after = (load_file(folder / "model.safetensors") for folder in (bench.base, run.folder))
    assert before.keys() == after.keys()
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert len(moved) == 2 * 7
    for name in moved:  # what was added has the rank of the adapters, up to bf16 rounding
        values = torch.linalg.svdvals(after[name].float() - before[name].float())
        assert values[4] < 0.05 * values[0]


def test_an_interrupt_is_told_and_the_best_model_so_far_stays(bench: Bench, tmp_path: Path) -> None:
    def stop(step: StepMetrics) -> None:
        if step.epoch > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.train(FULL, tmp_path, on_step=stop)
    assert event_kinds(tmp_path) == ["CREATED", "TRAIN_STARTED", *["EPOCH_FINISHED"] * 2, "STOPPED"]
    judged = [event.values["validation_score"] for event in EventLog(tmp_path / "events.jsonl").read()[2:-1]]
    assert accuracy(tmp_path / "model", bench.selection) == judged[best_epoch(judged, len(bench.selection)) - 1]
    assert not (tmp_path / "run.json").exists()
    assert latest_status(tmp_path) == "KILLED"


def test_rows_that_cannot_be_trained_on_fail_before_the_first_step(bench: Bench, tmp_path: Path) -> None:
    bad = example("what", "nonsense", path="train.jsonl", line=49)
    rows = bench.rows.subset("train", (*bench.rows.examples, bad))
    with pytest.raises(DataError) as caught:
        bench.train(FULL, tmp_path, rows=rows)
    assert str(caught.value).startswith(
        '1 of 49 rows cannot be trained on:\n  train.jsonl:49  unknown label "nonsense"'
    )
    assert event_kinds(tmp_path) == ["CREATED", "FAILED"]
    assert EventLog(tmp_path / "events.jsonl").read()[-1].message == f"DataError: {caught.value}"
    assert latest_status(tmp_path) == "FAILED"


def test_without_selection_rows_the_last_epoch_is_kept(bench: Bench, tmp_path: Path) -> None:
    short = FULL.model_copy(update={"duration": "2ep", "batch_tokens": 256})
    run = bench.train(short, tmp_path, selection=bench.selection.subset("none", ()))
    assert run.validation_curve == ((1.0, 0.0), (2.0, 0.0))
    assert run.best_epoch == 2
    assert read_manifest(run.folder).temperature == 1.0


@pytest.fixture(scope="module")
def unbroken(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return bench.train(SHORT, tmp_path_factory.mktemp("unbroken"))


def weights(run: Run) -> bytes:
    return (run.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("at", [2, 9])
def test_a_broken_run_reaches_the_weights_of_an_unbroken_one(
    bench: Bench, unbroken: Run, tmp_path: Path, at: int
) -> None:
    with pytest.raises(Killed):
        bench.train(SHORT, tmp_path, on_step=killing(at), save_every_s=0)
    assert CheckpointStore(tmp_path / "checkpoint").latest() is not None
    run = bench.train(SHORT, tmp_path)
    assert weights(run) == weights(unbroken)
    assert (run.validation_curve, run.loss_curve) == (unbroken.validation_curve, unbroken.loss_curve)
    assert run.best_epoch == unbroken.best_epoch
    assert "RESUMED" in event_kinds(tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_the_adapters_of_a_broken_run_are_taken_up_as_well(bench: Bench, tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"method": "lora", "lora_rank": 4, "duration": "2ep"})
    whole = bench.train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        bench.train(config, tmp_path / "broken", on_step=killing(4), save_every_s=0)
    assert weights(bench.train(config, tmp_path / "broken")) == weights(whole)


def test_a_finished_run_is_not_trained_again_and_leaves_no_checkpoint(bench: Bench, unbroken: Run) -> None:
    left = unbroken.folder.parent / "checkpoint" / "step-9"  # as by a kill between run.json and the tidying
    left.mkdir(parents=True)
    assert bench.train(SHORT, unbroken.folder.parent, on_step=killing(1)) == unbroken
    assert not left.parent.exists()


def test_a_checkpoint_of_another_run_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        bench.train(SHORT, tmp_path, on_step=killing(3), save_every_s=0)
    with pytest.raises(TrainingError, match="is of another run: its rows, settings or base model differ"):
        bench.train(SHORT.model_copy(update={"seed": 1}), tmp_path)
    other = shutil.copytree(bench.base, tmp_path / "base")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(TrainingError, match="is of another run"):
        bench.train(SHORT, tmp_path, base=other)


def test_a_run_that_is_cancelled_stops_within_one_step(bench: Bench, tmp_path: Path) -> None:
    seen: list[int] = []

    def cancel(step: StepMetrics) -> None:
        seen.append(step.step)
        if step.step == 3:
            (tmp_path / CANCEL_FILE).touch()

    with pytest.raises(Cancelled, match="cancelled at step 3 of"):
        bench.train(SHORT, tmp_path, on_step=cancel)
    assert seen == [1, 2, 3]
    assert event_kinds(tmp_path)[-1] == "STOPPED"


class Graded:
    """The recipe, with grades given in advance instead of an exam."""

    def __init__(self, recipe: TaskRecipe, grades: list[float], n_rows: int) -> None:
        self.name, self.train_rows, self.backend = recipe.name, recipe.train_rows, recipe.backend
        self.prepare, self.grades, self.n_rows = recipe.prepare, iter(grades), n_rows

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        return ValidationResult(next(self.grades), manifest, self.n_rows)


@pytest.mark.parametrize(("patience", "n_rows", "epochs", "kept"), [(1, 0, 3, 2), (None, 0, 7, 4), (1, 20, 7, 7)])
def test_patience_ends_a_run_that_no_longer_gets_better(
    bench: Bench, tmp_path: Path, patience: int | None, n_rows: int, epochs: int, kept: int
) -> None:
    """On 20 rows a score is known to 0.1 only, so the later epochs are as good."""
    recipe = Graded(TaskRecipe(bench.task, bench.rows, bench.selection), [0.5, 0.6, 0.5, 0.7, 0.6, 0.6, 0.6], n_rows)
    config = SHORT.model_copy(update={"duration": "7ep", "patience": patience})
    run = fine_tune(recipe, config, bench.base, tmp_path)
    assert len(run.validation_curve) == epochs
    assert run.best_epoch == kept


def test_a_model_that_cannot_be_saved_leaves_the_one_before(bench: Bench, tmp_path: Path, full_disk: FullDisk) -> None:
    short = SHORT.model_copy(update={"duration": "1ep"})
    first = bench.train(short, tmp_path / "first")
    before = weights(first)
    (first.folder.parent / "run.json").unlink()

    def fill(step: StepMetrics) -> None:
        if step.ends_epoch:
            disk.enter_context(full_disk(30_000))

    with ExitStack() as disk, pytest.raises(TrainingError, match="cannot write to "):
        bench.train(short, first.folder.parent, on_step=fill)
    assert weights(first) == before
    assert read_manifest(first.folder).base == "toys/tiny"
    assert not (first.folder.parent / "model.draft").exists()


def saved(value: float, n: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"w": torch.full((n,), value)}, {"step": value, "curve": [[1, 0.1 + 0.2]]}


def step_of(checkpoints: CheckpointStore) -> int:
    found = checkpoints.latest()
    return int(found.figures["step"])


def test_the_newest_complete_one_counts_and_the_ones_before_are_gone(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path)
    for step in (9, 10):
        checkpoints.write(step, *saved(step))
    (tmp_path / "step-11").mkdir()
    (tmp_path / "step-11" / "state.safetensors").write_bytes(b"half")
    assert step_of(checkpoints) == 10
    checkpoints.write(11, *saved(11))  # its remains are no obstacle
    assert os.listdir(tmp_path) == ["step-11"]


def test_a_full_disk_is_told_and_the_one_before_stays(tmp_path: Path, full_disk: FullDisk) -> None:
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.write(1, *saved(1))
    with full_disk(10_000), pytest.raises(OSError, match=r"(?i)too large"):
        checkpoints.write(2, *saved(2, 1_000_000))
    assert step_of(checkpoints) == 1
    assert os.listdir(tmp_path) == ["step-1"]


def test_none_is_due_at_once_and_one_always_is_without_a_pause(tmp_path: Path) -> None:
    assert not CheckpointStore(tmp_path, least_s=60).due
    always = CheckpointStore(tmp_path, least_s=0)
    assert always.due
    always.write(1, *saved(1))
    assert not always.due  # not before writing is at most 3 % of the time
