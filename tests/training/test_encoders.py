"""The fine-tuned encoder: a loss by hand, a head that begins as the rung below, a folder that answers as judged."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from fixtures.training import Killed, answers, killing
from safetensors.torch import load_file

from smallfirst.base.errors import DataError
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.out_of_fold import Fold, FoldAnswers, RawAnswer
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.linear.classifier import ENCODER_FOLDER, LinearClassifier
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.registry.runs import open_run
from smallfirst.tasks.classify import Classify
from smallfirst.training import encoders, precision
from smallfirst.training.config import Precision, TrainConfig, epoch_passes
from smallfirst.training.encoders import (
    CONTRASTIVE_WEIGHT,
    TEMPERATURE,
    ContrastiveBackend,
    EncoderBackend,
    EncoderRecipe,
    ReadFold,
    RefitRecipe,
    contrastive_loss,
    join_folds,
    suited_to,
)
from smallfirst.training.loop import MasterAdamW
from smallfirst.training.precision import DTYPES, ChosenPrecision
from smallfirst.training.run import Run, train

pytestmark = pytest.mark.usefixtures("module_home")
CONFIG = TrainConfig(duration="2ep", learning_rate=3e-3, batch_tokens=128, max_seq_tokens=64)


@pytest.fixture(scope="module")
def recipe(toy_task: Classify, toy_rows: Dataset, toy_selection: Dataset) -> EncoderRecipe:
    return EncoderRecipe(toy_task, toy_rows, toy_selection)


def tune(recipe: EncoderRecipe, base: Path, folder: Path, config: TrainConfig = CONFIG, **more: Any) -> Run:
    with open_run("toy", folder.name) as tracked:
        return train(recipe, config, base=("toys/encoder", base), tracked=tracked, folder=folder, **more)


@pytest.fixture(scope="module")
def tuned(recipe: EncoderRecipe, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tune(recipe, tiny_encoder_folder, tmp_path_factory.mktemp("tuned"))


def test_the_contrastive_loss_by_hand() -> None:
    angles = [0.0, math.pi / 3, math.pi / 2]  # cosines: 0.5 (0, 1), 0 (0, 2), cos 30° (1, 2)
    vectors = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
    near, none, wide = 0.5 / TEMPERATURE, 0.0, math.cos(math.pi / 6) / TEMPERATURE
    first = near - math.log(math.exp(near) + math.exp(none))
    second = near - math.log(math.exp(near) + math.exp(wide))
    found = contrastive_loss(vectors, torch.tensor([7, 7, 9]))  # the third has no partner
    assert found.item() == pytest.approx(-(first + second) / 2, rel=1e-5)
    assert contrastive_loss(vectors, torch.tensor([1, 2, 3])).item() == 0


def test_the_head_begins_as_the_logistic_regression_on_the_frozen_encoder(
    recipe: EncoderRecipe, tiny_encoder_folder: Path
) -> None:
    model, tokenizer = ContrastiveBackend(4).load(tiny_encoder_folder, CONFIG)
    rows = recipe.prepare(tokenizer, CONFIG, "toys/encoder").rows
    ContrastiveBackend(4).begin(model, rows, CONFIG)
    frozen = LinearClassifier.fit(
        "encoder", recipe.train_rows, recipe.task, encoder=SentenceEncoder(tiny_encoder_folder)
    )
    assert model.weights.detach().numpy() == pytest.approx(frozen.weights, abs=0.05)
    assert model.bias.detach().numpy() == pytest.approx(frozen.bias, abs=0.05)


def test_few_rows_are_passed_over_several_times_an_epoch() -> None:
    assert [epoch_passes(n, TrainConfig()) for n in (0, 1000, 5800, 11_500, 20_000, 120_000)] == [8, 8, 5, 3, 2, 1]


def test_an_epoch_passes_over_few_rows_several_times_in_other_orders() -> None:
    class Row(NamedTuple):
        ids: tuple[int, ...]

    rows, config = [Row((n,) * 20) for n in range(9)], TrainConfig(batch_tokens=40)
    found = [row for batch in EncoderBackend().batches(rows, config, 0) for row in batch]
    assert Counter(found) == dict.fromkeys(rows, 7)  # 180 tokens, 30 batches of 40
    assert found[:9] != found[9:18]


def test_the_folder_is_a_model_that_answers_as_it_was_judged(tuned: Run, recipe: EncoderRecipe) -> None:
    examples = recipe.selection.examples
    said = answers(tuned.folder, *(e.text for e in examples))
    right = [one.text == e.answer for one, e in zip(said, examples, strict=True)]
    assert np.mean(right) == max(value for _, value in tuned.validation_curve)
    manifest = read_manifest(tuned.folder)
    assert (manifest.kind, manifest.base) == ("encoder", "toys/encoder")
    assert manifest.weights_fingerprint
    # What is served reads as much of a text as was taught.
    assert LinearClassifier.load(tuned.folder, manifest).features.__self__.max_tokens == CONFIG.max_seq_tokens


def test_several_labels_are_taught_by_a_sigmoid_each(tiny_encoder_folder: Path, toy_rows: Dataset) -> None:
    task = Classify(name="toy", labels=("card", "lost"), multiple=True)
    examples = tuple(e.model_copy(update={"answer": task.parse(f"[{e.answer}]") or "[]"}) for e in toy_rows.examples)
    recipe = EncoderRecipe(task, toy_rows.subset("several", examples), toy_rows.subset("several", examples))
    backend = recipe.backend
    model, tokenizer = backend.load(tiny_encoder_folder, CONFIG)
    prepared = recipe.prepare(tokenizer, CONFIG, "toys/encoder")
    rows = prepared.rows
    assert {row.labels for row in rows} == {(0, 0), (1, 0), (0, 1)}
    assert len({row.label for row in rows}) == 3
    backend.begin(model, rows, CONFIG)
    with torch.inference_mode():
        vectors, logits = model(rows)
    right = torch.where(torch.tensor([row.labels for row in rows]) > 0, logits, -logits)
    by_hand = torch.nn.functional.softplus(-right).sum(1).mean()
    by_hand += CONTRASTIVE_WEIGHT * contrastive_loss(vectors, torch.tensor([row.label for row in rows]))
    optimizer = MasterAdamW([p for p in model.parameters() if p.requires_grad], CONFIG)
    assert backend.gradient(model, rows, CONFIG, optimizer) == pytest.approx(by_hand.item(), rel=1e-3)
    found = recipe.validate(model, tokenizer, prepared.manifest)
    assert found.value > 0.3
    assert found.manifest.calibration.weights


def test_rate_and_frozen_layers_suit_the_encoder(tmp_path: Path) -> None:
    rates = {}
    for width in (128, 384, 768):
        (tmp_path / "config.json").write_text(f'{{"hidden_size": {width}, "num_hidden_layers": 6}}')
        rates[width] = suited_to(TrainConfig(duration="6ep"), tmp_path).learning_rate
        assert suited_to(TrainConfig(learning_rate=1e-3), tmp_path).learning_rate == 1e-3
    assert rates == pytest.approx({128: 2e-4, 384: 2e-4, 768: 5e-5})
    asked = (TrainConfig(), TrainConfig(frozen_layers=1))
    assert [suited_to(config, tmp_path, frozen_share=0.5).frozen_layers for config in asked] == [3, 1]


def test_above_frozen_layers_loss_and_gradients_are_the_same_and_each_text_passes_below_once(
    tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[2, *range(5, 5 + n), 3] for n in (3, 9, 1, 4)]
    whole, frozen = SentenceEncoder(tiny_encoder_folder), SentenceEncoder(tiny_encoder_folder)
    for encoder in (whole, frozen):
        encoder.model.eval()
    frozen.freeze(1)
    below = []
    embed = frozen.model.embeddings.forward
    monkeypatch.setattr(frozen.model.embeddings, "forward", lambda **ids: below.append(ids) or embed(**ids))
    for _ in range(2):
        expected, found = whole.vectors(rows), frozen.vectors(rows)
        assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-6)
        for vectors in (expected, found):
            vectors[:, 0].sum().backward()
    assert len(below) == 1
    for (name, one), other in zip(frozen.model.named_parameters(), whole.model.parameters(), strict=True):
        assert (one.grad is None) == (".layer.1." not in name or other.grad is None)
        if one.grad is not None:
            assert one.grad.numpy() == pytest.approx(other.grad.numpy(), abs=1e-5)


def test_it_is_kept_in_the_precision_that_it_learnt_in(
    tuned: Run, recipe: EncoderRecipe, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_file(tiny_encoder_folder / "model.safetensors")["encoder.layer.1.output.dense.weight"]
    dtype = DTYPES[tuned.precision[:4]]  # type: ignore[index]
    other: Precision = "fp32" if dtype == torch.bfloat16 else "bf16"
    monkeypatch.setattr(encoders, "fastest_precision", lambda *_: ChosenPrecision(other, other))
    kept = tune(recipe, tiny_encoder_folder, tmp_path)
    for run, wanted in ((tuned, dtype), (kept, DTYPES[other])):
        weights = load_file(run.folder / ENCODER_FOLDER / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {wanted}
        assert (before.float() - weights["encoder.layer.1.output.dense.weight"].float()).abs().max() > 1e-3


def test_of_the_word_embedding_the_tokens_of_the_rows_alone_move(
    tuned: Run, recipe: EncoderRecipe, tiny_encoder_folder: Path
) -> None:
    name = "embeddings.word_embeddings.weight"
    before = load_file(tiny_encoder_folder / "model.safetensors")[name]
    after = load_file(tuned.folder / ENCODER_FOLDER / "model.safetensors")[name]
    tokenizer = SentenceEncoder(tiny_encoder_folder).tokenizer
    used = {token for row in recipe.prepare(tokenizer, CONFIG, "x").rows for token in row.ids}
    moved = (before.to(after.dtype) != after).any(1).nonzero().flatten().tolist()
    assert set(moved) == used
    assert len(used) < len(before) / 2


def test_a_broken_run_reaches_the_same_weights_in_the_precision_that_it_began_in(
    tuned: Run, recipe: EncoderRecipe, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        tune(recipe, tiny_encoder_folder, tmp_path, on_step=killing(9), save_every_s=0)
    for architecture, spent in precision._MEASURED.items():  # now the other one would be faster
        slower = max(spent, key=lambda name: spent[name])
        monkeypatch.setitem(precision._MEASURED, architecture, {**spent, slower: 0.0})
    again = tune(recipe, tiny_encoder_folder, tmp_path)
    assert again.precision == f"{tuned.precision[:4]}, as it began"
    for file in ("linear.safetensors", f"{ENCODER_FOLDER}/model.safetensors"):
        assert (again.folder / file).read_bytes() == (tuned.folder / file).read_bytes()


def test_rows_that_cannot_be_trained_on_are_named(
    recipe: EncoderRecipe, tiny_encoder_folder: Path, toy_task: Classify
) -> None:
    tokenizer = SentenceEncoder(tiny_encoder_folder).tokenizer
    few = EncoderRecipe(Classify(name="toy", labels=toy_task.labels[:3]), recipe.train_rows, recipe.selection)
    with pytest.raises(DataError, match=r'12 of 48 rows .*\n  12 rows, first train.jsonl:10  unknown label "lost'):
        few.prepare(tokenizer, CONFIG, "x")
    short = recipe.prepare(tokenizer, CONFIG.model_construct(max_seq_tokens=3), "x").rows  # of long ones the beginning
    assert {len(row.ids) for row in short} == {3}


NONE = Dataset(name="none", examples=())
MANIFEST = Manifest(kind="encoder", task=Classify(name="desk", labels=("card", "fee")), base="mini")


def read(scores: tuple[float, ...], n_rows: int, name: str) -> ReadFold:
    answers = tuple(tuple(RawAnswer(nats=(), text=f"{name}{i} {epoch}") for i in range(n_rows)) for epoch in (1, 2, 3))
    return ReadFold(scores=scores, answers=answers, manifest=MANIFEST)


def test_each_row_is_answered_after_the_epoch_that_is_best_on_the_other_folds() -> None:
    folds = [Fold((0, 3), NONE, NONE), Fold((1, 2), NONE, NONE), Fold((4,), NONE, NONE)]
    answers, curve = join_folds(
        folds, [read((1.0, 0.1, 0.2), 2, "a"), read((0.1, 1.0, 0.3), 2, "b"), read((1.0, 1.0, 0.9), 1, "c")]
    )
    # Epochs of the others: (0.4, 1, 0.5) for a, (1, 0.4, 0.43) for b, (0.55, 0.55, 0.25) for c; their rows are few.
    assert [one.text for one in answers.values()] == ["a0 2", "b0 1", "b1 1", "a1 2", "c0 3"]
    alone, _ = join_folds(folds[2:], [read((0.5, 1.0, 0.1), 1, "a")])  # a single fold has no others
    assert [one.text for one in alone.values()] == ["a0 2"]
    assert curve == pytest.approx([(2.0 + 0.2 + 1.0) / 5, (0.2 + 2.0 + 1.0) / 5, (0.4 + 0.6 + 0.9) / 5])


def test_the_refit_is_judged_by_the_folds(toy_task: Classify, toy_rows: Dataset) -> None:
    manifest = MANIFEST.model_copy(update={"task": toy_task})
    folds = FoldAnswers(
        dataset_fingerprint="f",
        manifest=manifest.model_copy(update={"temperature": 1.7}),
        answers=(),
        n_folds=3,
        curve=(0.5, 0.7, 0.7, 0.6),
    )
    recipe = RefitRecipe(EncoderRecipe(toy_task, toy_rows, toy_rows.subset("none", ())), folds)
    judged = [recipe.validate(cast(Any, None), None, manifest) for _ in range(5)]
    assert [one.value for one in judged] == [0.5, 0.7, 0.7, 0.6, 0.6]
    assert judged[0].manifest.temperature == 1.7
    assert folds.best_epoch == 3
