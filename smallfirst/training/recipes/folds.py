"""Fine-tunes that answer rows out of fold, and the one on all rows that follows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.evaluation.out_of_fold import Fold, FoldAnswers, RawAnswer, best_epoch
from smallfirst.models.manifest import Int8Check, Manifest
from smallfirst.records import Record
from smallfirst.training.config import TrainConfig
from smallfirst.training.loop import Backend
from smallfirst.training.recipes.recipe import PreparedData
from smallfirst.training.validation import ValidationResult


class EncoderRecipeLike(Protocol):
    """A recipe of an encoder: it reads what it was not trained on."""

    name: str
    train_rows: Dataset
    selection: Dataset

    @property
    def backend(self) -> Backend: ...

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData: ...

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult: ...

    def read(self, model: Any, manifest: Manifest) -> list[RawAnswer]:
        """Return the answers to the selection rows, computed in fp32, as the model will be served."""


class ReadFold(Record):
    """What the model of one fold answered after each epoch to the rows that it was not trained on."""

    scores: tuple[float, ...]
    """Mean score of each epoch, in [0, 1]."""
    answers: tuple[tuple[RawAnswer, ...], ...]
    """By epoch, in the order of the fold's rows."""
    manifest: Manifest
    """As it was prepared, nothing calibrated."""
    int8: Int8Check | None = None
    """How int8 arithmetic changed the model's answers to these rows; None if that was not measured."""


class _Wrapped:
    def __init__(self, recipe: EncoderRecipeLike) -> None:
        self.recipe, self.name, self.train_rows = recipe, recipe.name, recipe.train_rows

    @property
    def backend(self) -> Backend:
        return self.recipe.backend

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        return self.recipe.prepare(tokenizer, config, base)


class FoldRecipe(_Wrapped):
    """Train on the other folds and keep what is answered to this one's rows after each epoch."""

    def __init__(self, recipe: EncoderRecipeLike) -> None:
        super().__init__(recipe)
        self._read: list[tuple[float, tuple[RawAnswer, ...]]] = []
        self._manifest: Manifest | None = None

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        answers, rows = self.recipe.read(model, manifest), self.recipe.selection
        value, calibrated = FoldAnswers.fit(answers, rows, manifest, 1).calibrated(rows.examples)
        self._read.append((value, tuple(answers)))
        self._manifest = manifest
        return ValidationResult(value, calibrated)

    @property
    def found(self) -> ReadFold:
        assert self._manifest is not None  # an epoch was validated
        scores, answers = zip(*self._read, strict=True)
        return ReadFold(scores=scores, answers=answers, manifest=self._manifest)


class RefitRecipe(_Wrapped):
    """Train on all rows; the folds say which epoch is the best and how sure the answers are."""

    def __init__(self, recipe: EncoderRecipeLike, folds: FoldAnswers) -> None:
        super().__init__(recipe)
        self.folds, self._epoch = folds, 0

    def validate(self, model: Any, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        """Return the folds' score after this epoch: no row is left that the model has not seen."""
        self._epoch += 1
        curve, of = self.folds.curve, self.folds.manifest
        fitted = {name: getattr(of, name) for name in ("temperature", "label_threshold", "calibration")}
        return ValidationResult(curve[min(self._epoch, len(curve)) - 1], manifest.model_copy(update=fitted))


class JoinedFolds(NamedTuple):
    """The folds of one fine-tune together."""

    answers: dict[int, RawAnswer]
    """By place of the row; sorted."""
    curve: list[float]
    """Mean score after each epoch, in [0, 1]."""


def join_folds(folds: Sequence[Fold], read: Sequence[ReadFold]) -> JoinedFolds:
    """Return each row's answer after the epoch that is best on the other folds, so that no row chooses its own."""
    n_epochs = min(len(one.scores) for one in read)
    scores = np.array([one.scores[:n_epochs] for one in read])  # (folds, epochs)
    sizes = np.array([len(fold.at) for fold in folds], dtype=float)
    answers: dict[int, RawAnswer] = {}
    for k, (fold, one) in enumerate(zip(folds, read, strict=True)):
        weights = np.delete(sizes, k) if len(read) > 1 else sizes
        others = np.delete(scores, k, axis=0) if len(read) > 1 else scores
        epoch = best_epoch((weights @ others / weights.sum()).tolist())
        answers |= dict(zip(fold.at, one.answers[epoch - 1], strict=True))
    curve = (sizes @ scores / sizes.sum()).tolist()
    return JoinedFolds(dict(sorted(answers.items())), curve)
