"""train(): a model folder that answers, a run that can be read again, a curve in a real MLflow store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.training import Bench, event_kinds
from safetensors.torch import load_file

from smallfirst.base.errors import DataError, TrainingError
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.loading import load_model
from smallfirst.models.local.tokenizer import choose_label_tokens
from smallfirst.models.local.weights import load_causal, weights_fingerprint
from smallfirst.models.manifest import base_sha256, read_manifest
from smallfirst.models.protocol import Completion, Request
from smallfirst.registry.runs import client
from smallfirst.training import causal_lm
from smallfirst.training.config import TrainConfig
from smallfirst.training.events import EventLog
from smallfirst.training.loop import StepMetrics
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("module_home")
FULL = TrainConfig(duration="230ba", learning_rate=3e-3, batch_tokens=40, max_seq_tokens=64)
LORA = TrainConfig(method="lora", duration="20ep", learning_rate=2e-2, batch_tokens=64, max_seq_tokens=64, lora_rank=4)


@pytest.fixture(scope="module")
def full(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[StepMetrics]]:
    steps: list[StepMetrics] = []
    return bench.train(FULL, tmp_path_factory.mktemp("full"), on_step=steps.append), steps


@pytest.fixture(scope="module")
def lora(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return bench.train(LORA, tmp_path_factory.mktemp("lora"))


def answers(folder: Path, data: Dataset) -> list[Completion]:
    async def together() -> list[Completion]:
        model = load_model(folder)
        asked = [model.complete(Request.ask(example.text)) for example in data.examples]
        found = await asyncio.gather(*asked)
        await model.aclose()
        return found

    return asyncio.run(together())


def accuracy(folder: Path, data: Dataset) -> float:
    found = answers(folder, data)
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
    assert len(steps) == 230
    assert Run.load(run.folder.parent / "run.json") == run


def test_a_second_training_in_the_same_folder_is_refused(bench: Bench, tmp_path: Path) -> None:
    def second(step: StepMetrics) -> None:
        if step.step in (1, 3):
            with pytest.raises(TrainingError, match="another process is training"):
                bench.train(short, tmp_path / "shared")

    short = FULL.model_copy(update={"duration": "4ba"})
    bench.train(short, tmp_path / "shared", on_step=second)
    assert event_kinds(tmp_path / "shared").count("COMPLETED") == 1
    assert bench.train(short, tmp_path / "shared").best_epoch == 1  # once it has ended its run is read again


def test_the_loss_curve_has_at_most_200_points_and_spans_the_run(full: tuple[Run, list[StepMetrics]]) -> None:
    run, steps = full
    assert run.loss_curve == tuple((s.step, s.loss) for s in steps)[::2]
    assert len(run.loss_curve) == 115
    assert run.loss_curve[-1][1] < 0.1 * run.loss_curve[0][1]


def test_each_epoch_was_judged_and_the_last_of_the_best_was_kept(full: tuple[Run, list[StepMetrics]]) -> None:
    run, _ = full
    epochs, accuracies = zip(*run.validation_curve, strict=True)
    assert epochs == tuple(float(n) for n in range(1, len(epochs) + 1))
    assert run.best_epoch == max(n for n, value in enumerate(accuracies, 1) if value == max(accuracies))
    assert accuracies[0] < max(accuracies)


def test_the_folder_is_a_model_that_answers_as_well_as_it_was_judged(
    full: tuple[Run, list[StepMetrics]], bench: Bench
) -> None:
    run, _ = full
    best = max(value for _, value in run.validation_curve)
    assert best > 0.7
    assert accuracy(run.folder, bench.selection) == best
    for answer in answers(run.folder, bench.rows):
        assert answer.text in bench.task.labels
        assert 0.25 < (answer.confidence or 0) <= 1


def test_the_manifest_fits_the_weights_beside_it(full: tuple[Run, list[StepMetrics]], bench: Bench) -> None:
    manifest = read_manifest(full[0].folder)
    model, tokenizer = load_causal(full[0].folder)
    assert (manifest.kind, manifest.base, manifest.max_tokens) == ("label_tokens", "toys/tiny", 64)
    assert manifest.task == bench.task
    assert manifest.label_tokens == choose_label_tokens(bench.task.labels, tokenizer)
    assert manifest.weights_fingerprint == weights_fingerprint(model)
    assert 0.25 <= manifest.temperature <= 8
    assert manifest.temperature != 1.0


def test_events_tell_the_run_from_creation_to_completion(full: tuple[Run, list[StepMetrics]]) -> None:
    run, _ = full
    log = EventLog(run.folder.parent / "events.jsonl")
    epochs = ["EPOCH_FINISHED"] * len(run.validation_curve)
    assert event_kinds(run.folder.parent) == ["CREATED", "TRAIN_STARTED", *epochs, "COMPLETED"]
    assert log.status() == "COMPLETED"
    events = log.read()
    assert events[0].message == "fine-tune of toys/tiny on 48 rows"
    assert events[0].values["config"] == FULL.model_dump()
    assert events[1].values == {"steps": 230}
    judged = [event.values["validation_score"] for event in events[2:-1]]
    assert judged == [value for _, value in run.validation_curve]


def test_the_curves_are_in_mlflow(full: tuple[Run, list[StepMetrics]]) -> None:
    run, steps = full
    store = client()
    assert store.get_run(run.run_id).info.status == "FINISHED"
    losses = store.get_metric_history(run.run_id, "loss")
    assert [(p.step, p.value) for p in losses] == [(s.step, s.loss) for s in steps]
    rates = store.get_metric_history(run.run_id, "learning_rate")
    assert [p.value for p in rates] == [s.learning_rate for s in steps]
    judged = store.get_metric_history(run.run_id, "validation_score")
    assert [p.value for p in judged] == [value for _, value in run.validation_curve]
    assert judged[-1].step == 230


def test_a_model_that_learns_in_fp32_is_kept_in_bf16_and_answers_as_judged(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "training_dtype", lambda: torch.float32)
    learnt_in = set()

    def note(model: Any, *rest: Any, loss: Any = causal_lm.target_loss) -> torch.Tensor:
        learnt_in.add(model.dtype)
        return loss(model, *rest)

    monkeypatch.setattr(causal_lm, "target_loss", note)
    found = bench.train(FULL.model_copy(update={"duration": "60ba"}), tmp_path / "run")
    assert learnt_in == {torch.float32}
    assert {t.dtype for t in load_file(found.folder / "model.safetensors").values()} == {torch.bfloat16}
    assert accuracy(found.folder, bench.selection) == max(value for _, value in found.validation_curve)


def test_a_lora_run_ends_in_a_plain_model_that_answers_as_judged(lora: Run, bench: Bench) -> None:
    best = max(value for _, value in lora.validation_curve)
    assert best > 0.7
    assert accuracy(lora.folder, bench.selection) == pytest.approx(best, abs=1 / 24)  # bf16 rounding
    assert not list(lora.folder.glob("*adapter*"))
    assert read_manifest(lora.folder).weights_fingerprint == weights_fingerprint(load_causal(lora.folder)[0])


def test_a_lora_run_moves_the_linear_layers_of_the_blocks_and_nothing_else(lora: Run, bench: Bench) -> None:
    before = load_file(bench.base / "model.safetensors")
    after = load_file(lora.folder / "model.safetensors")
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
    assert accuracy(tmp_path / "model", bench.selection) == max(judged)
    assert not (tmp_path / "run.json").exists()
    assert latest_status(tmp_path) == "KILLED"


def test_rows_that_cannot_be_trained_on_fail_before_the_first_step(bench: Bench, tmp_path: Path) -> None:
    bad = Example(
        messages=(Message(role="user", content="what"),), answer="nonsense", shape="label", path="train.jsonl", line=49
    )
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
