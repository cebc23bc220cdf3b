"""Fine-tunes in folds: no row chooses the epoch that it is answered by, and the refit takes what the folds found."""

from __future__ import annotations

from typing import Any, cast

import pytest

from smallfirst.data.dataset import Dataset
from smallfirst.evaluation.out_of_fold import Fold, FoldAnswers, RawAnswer
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.classify import Classify
from smallfirst.training.recipes.contrastive import EncoderRecipe
from smallfirst.training.recipes.folds import ReadFold, RefitRecipe, join_folds

NONE = Dataset(name="none", examples=())
MANIFEST = Manifest(kind="encoder", task=Classify(name="desk", labels=("card", "fee")), base="mini")


def read(scores: tuple[float, ...], n_rows: int, name: str) -> ReadFold:
    answers = tuple(tuple(RawAnswer(nats=(), text=f"{name}{i} {epoch}") for i in range(n_rows)) for epoch in (1, 2, 3))
    return ReadFold(scores=scores, answers=answers, manifest=MANIFEST)


def test_each_row_is_answered_after_the_epoch_that_is_best_on_the_other_folds() -> None:
    folds = [Fold((0, 3), NONE, NONE), Fold((1, 2), NONE, NONE), Fold((4,), NONE, NONE)]
    found = join_folds(
        folds, [read((0.9, 0.5, 0.6), 2, "a"), read((0.4, 0.8, 0.8), 2, "b"), read((0.6, 0.7, 0.5), 1, "c")]
    )
    # Epochs of the others: (0.467, 0.767, 0.7) for a, (0.8, 0.567, 0.567) for b, (0.65, 0.65, 0.7) for c.
    assert [one.text for one in found.answers.values()] == ["a0 2", "b0 1", "b1 1", "a1 2", "c0 3"]
    assert found.curve == pytest.approx([(1.8 + 0.8 + 0.6) / 5, (1.0 + 1.6 + 0.7) / 5, (1.2 + 1.6 + 0.5) / 5])


def test_a_single_fold_has_no_others() -> None:
    found = join_folds([Fold((0,), NONE, NONE)], [read((0.5, 0.6, 0.1), 1, "a")])
    assert [one.text for one in found.answers.values()] == ["a0 2"]


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
