"""Sentence encoders that are fine-tuned whole: what they have in common, the one with a linear head, and folds.

They learn in bf16, or in fp32 where the processor is faster so, and are judged in fp32. The head begins as the logistic
regression on the frozen encoder (Kumar et al. 2022). Then both move, by cross-entropy and a supervised contrastive loss
(Khosla et al. 2020), which draws texts of a label together.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset, Example
from smallfirst.measuring.calibration import calibrate_labels
from smallfirst.measuring.out_of_fold import Fold, FoldAnswers, RawAnswer, best_epoch, read_labels
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.linear.classifier import (
    ENCODER_FOLDER,
    INVERSE_REGULARIZATION,
    LinearClassifier,
    fit_linear,
    gold_labels,
)
from smallfirst.models.local.weights import keep_freed_memory, weights_fingerprint
from smallfirst.models.manifest import Int8Check, Manifest
from smallfirst.tasks.task import Task
from smallfirst.training.config import Precision, TrainConfig, ValidationResult, epoch_passes
from smallfirst.training.loop import MasterAdamW, epoch_batches, measured_rows
from smallfirst.training.precision import DTYPES, ChosenPrecision, fastest_precision, in_precision, set_precision
from smallfirst.training.recipe import PreparedData, Recipe, RowsOfTask, encode_rows

CONTRASTIVE_WEIGHT = 0.5
"""Weight of the contrastive loss beside the cross-entropy."""
TEMPERATURE = 0.1
"""Of the contrastive loss; Khosla et al. use 0.1."""
LEARNING_RATE, RATE_WIDTH = 2e-4, 384
"""Peak rate for an encoder of this width. It falls with the square of the width: 5e-5 for 768."""
ROWS_PER_LABEL = 4
"""Rows of a label that are put into a batch together."""


class EncoderBackend:
    """A Backend whose model has the encoder as `body`; a subclass says how it is loaded and saved, and its loss."""

    def begin(
        self, model: Any, rows: Sequence[Any], config: TrainConfig, began_in: Precision | None = None
    ) -> ChosenPrecision:
        """Prepare the encoder: of the word embedding only the rows' tokens are trained.

        What AdamW does for the others is to decay them, which helps no text, and takes half of its time and memory.
        """
        keep_freed_memory()
        words = model.body.get_input_embeddings()
        words.sparse = True
        words.weight.trained_rows = torch.tensor(sorted({token for row in rows for token in row.ids}))
        most = model.encoder.max_positions - 2  # of a longer row of a tagger, which reads it in windows
        sample = [row.ids[:most] for row in measured_rows(self.batches(rows, config, config.seed)[0])]
        chosen = fastest_precision(model.body, lambda: model.encoder.vectors(sample).sum(), began_in)
        set_precision(model.body, DTYPES[chosen.name])
        if config.frozen_layers:
            model.encoder.freeze(config.frozen_layers)
        return chosen

    def batches(self, rows: Sequence[Any], config: TrainConfig, seed: int) -> list[list[Any]]:
        """Return the batches of `epoch_passes` passes over the rows, each in another order."""
        passes = range(epoch_passes(sum(len(row.ids) for row in rows), config))
        seeds = [seed + 1_000_003 * one for one in passes]
        return [batch for own in seeds for batch in epoch_batches(rows, batch_tokens=config.batch_tokens, seed=own)]

    def gradient(self, model: Any, rows: Sequence[Any], config: TrainConfig, optimizer: MasterAdamW) -> float:
        loss = self.loss(model, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.gather()
        return loss.item()

    def loss(self, model: Any, rows: Sequence[Any]) -> torch.Tensor:
        """Return the mean loss of a batch, in nats."""
        raise NotImplementedError

    def save(self, model: Any, tokenizer: Any, folder: Path) -> str:
        model.save(folder)
        return weights_fingerprint(model)


def as_served(model: Any) -> AbstractContextManager[None]:
    """Compute in fp32 inside the block, as the model will be served."""
    return in_precision(model.body, torch.float32)


class LabelledRow(NamedTuple):
    """One tokenised row."""

    ids: tuple[int, ...]
    label: int
    """Place of its label among the task's; of several labels the number of their set."""
    labels: tuple[float, ...] = ()
    """0 or 1 for each label of the task, where a text may have several."""


class SentenceClassifier(torch.nn.Module):
    """An encoder and a linear head on its unit vectors."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.body = encoder.model
        self.weights = torch.nn.Parameter(torch.empty(0))
        self.bias = torch.nn.Parameter(torch.empty(0))

    def forward(self, rows: Sequence[LabelledRow]) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.encoder.vectors([row.ids for row in rows])
        return vectors, vectors @ self.weights.T + self.bias

    def scorer(self, *, several_labels: bool = False) -> LinearClassifier:
        weights, bias = self.weights.detach().numpy(), self.bias.detach().numpy()
        return LinearClassifier(self.encoder.embed, weights, bias, several_labels=several_labels)

    def save(self, folder: Path) -> None:
        self.body.save_pretrained(folder / ENCODER_FOLDER)
        self.encoder.tokenizer.save_pretrained(folder / ENCODER_FOLDER)
        self.scorer().save_weights(folder)


class ContrastiveBackend(EncoderBackend):
    """The Backend of a sentence encoder with a linear head."""

    def __init__(self, n_labels: int) -> None:
        self.n_labels = n_labels

    def load(self, base: Path, config: TrainConfig) -> tuple[SentenceClassifier, Any]:
        encoder = SentenceEncoder(base)
        encoder.max_tokens = min(encoder.max_tokens, config.max_seq_tokens)
        return SentenceClassifier(encoder).eval(), encoder.tokenizer

    def begin(
        self,
        model: SentenceClassifier,
        rows: Sequence[LabelledRow],
        config: TrainConfig,
        began_in: Precision | None = None,
    ) -> ChosenPrecision:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        vectors = torch.zeros(len(rows), model.body.config.hidden_size)
        chosen = super().begin(model, rows, config, began_in)
        with torch.inference_mode():
            for start in range(0, len(order), SentenceEncoder.batch_rows):
                at = order[start : start + SentenceEncoder.batch_rows]
                vectors[at] = model.encoder.vectors([rows[i].ids for i in at])
        gold = np.array([row.labels or row.label for row in rows]).astype(np.int64)
        weights, bias = fit_linear(vectors.numpy(), gold, self.n_labels, INVERSE_REGULARIZATION["encoder"])
        model.weights.data, model.bias.data = torch.from_numpy(weights), torch.from_numpy(bias)
        return chosen

    def batches(self, rows: Sequence[LabelledRow], config: TrainConfig, seed: int) -> list[list[LabelledRow]]:
        """Return batches of groups of ROWS_PER_LABEL rows of one label, every row `epoch_passes` times."""
        draw = random.Random(seed)
        by_label: dict[int, list[LabelledRow]] = defaultdict(list)
        for row in rows:
            by_label[row.label].append(row)
        groups = []
        for _ in range(epoch_passes(sum(len(row.ids) for row in rows), config)):
            of_pass = []
            for own in by_label.values():
                draw.shuffle(own)
                of_pass += [own[start : start + ROWS_PER_LABEL] for start in range(0, len(own), ROWS_PER_LABEL)]
            draw.shuffle(of_pass)
            groups += of_pass
        batches: list[list[LabelledRow]] = [[]]
        for group in groups:
            if batches[-1] and sum(len(r.ids) for r in [*batches[-1], *group]) > config.batch_tokens:
                batches.append([])
            batches[-1] += group
        return batches

    def loss(self, model: SentenceClassifier, rows: Sequence[LabelledRow]) -> torch.Tensor:
        vectors, logits = model(rows)
        labels = torch.tensor([row.label for row in rows])
        if rows[0].labels:
            gold = torch.tensor([row.labels for row in rows])
            of_labels = F.binary_cross_entropy_with_logits(logits, gold, reduction="sum") / len(rows)
        else:
            of_labels = F.cross_entropy(logits, labels)
        return of_labels + CONTRASTIVE_WEIGHT * contrastive_loss(vectors, labels)


class EncoderRecipe(RowsOfTask[Task]):
    """A task whose answers are labels."""

    @property
    def backend(self) -> ContrastiveBackend:
        return ContrastiveBackend(len(self.task.answer_labels))

    def prepare(self, tokenizer: Any, config: TrainConfig, base: str) -> PreparedData:
        """Return the rows in tokens, of longer texts the beginning, which is what the encoder is asked with later."""
        several = not self.task.closed
        index = {answer: i for i, answer in enumerate(self.train_rows.labels() if several else self.task.closed)}

        def encode(example: Example) -> LabelledRow | str:
            try:
                gold = gold_labels([example.answer], self.task)[0]
            except KeyError as unknown:
                return f'unknown label "{unknown.args[0]}"'
            labels = tuple(map(float, gold)) if several else ()
            ids = tokenizer.encode(example.text, truncation=True, max_length=config.max_seq_tokens)
            return LabelledRow(tuple(ids), index[example.answer], labels)

        (rows,) = encode_rows([self.train_rows], encode, max_tokens=config.max_seq_tokens)
        return PreparedData(rows, Manifest(kind="encoder", task=self.task, base=base, max_tokens=config.max_seq_tokens))

    def validate(self, model: SentenceClassifier, tokenizer: Any, manifest: Manifest) -> ValidationResult:
        """Return the mean score on the selection rows, computed in fp32, as the model will be served."""
        with as_served(model):
            scorer = model.scorer(several_labels=not self.task.closed)
            scored = scorer.score([example.text for example in self.selection.examples])
        return ValidationResult(*calibrate_labels(scored, self.selection, manifest), len(self.selection))

    def read(self, model: SentenceClassifier, manifest: Manifest) -> list[RawAnswer]:
        with as_served(model):
            scorer = model.scorer(several_labels=not self.task.closed)
            texts = [example.text for example in self.selection.examples]
            return read_labels(scorer, self.train_rows, texts, manifest)


def suited_to(config: TrainConfig, base: Path, *, frozen_share: float = 0.0) -> TrainConfig:
    """Return the settings with the learning rate and the frozen layers that suit the encoder in `base`, unless set.

    `frozen_share` of its layers, the lowest ones, are frozen.
    """
    found = json.loads((base / "config.json").read_text(encoding="utf-8"))
    rate = min(LEARNING_RATE, LEARNING_RATE * (RATE_WIDTH / found["hidden_size"]) ** 2)
    suited = {"learning_rate": rate, "frozen_layers": round(frozen_share * found["num_hidden_layers"])}
    return config.model_copy(update={name: suited[name] for name in suited if name not in config.model_fields_set})


def contrastive_loss(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss L_out of Khosla et al. 2020 in nats of unit vectors (rows, width); 0 if no row has a partner."""
    alone = torch.eye(len(labels), dtype=torch.bool)
    likeness = (vectors @ vectors.T / TEMPERATURE).masked_fill(alone, -torch.inf)  # (rows, rows)
    logs = likeness - torch.logsumexp(likeness, dim=1, keepdim=True)
    partners = (labels[:, None] == labels[None, :]) & ~alone
    n_partners = partners.sum(1)
    has = n_partners > 0
    if not has.any():
        return vectors.sum() * 0
    mean = logs.masked_fill(~partners, 0).sum(1)[has] / n_partners[has]
    return -mean.mean()


class EncoderRecipeLike(Recipe, Protocol):
    """A recipe of an encoder: it reads what it was not trained on."""

    selection: Dataset

    def read(self, model: Any, manifest: Manifest) -> list[RawAnswer]:
        """Return the answers to the selection rows, computed in fp32, as the model will be served."""


class ReadFold(Record):
    """What the model of one fold answered after each epoch to the rows that it was not trained on."""

    scores: tuple[float, ...]
    answers: tuple[tuple[RawAnswer, ...], ...]
    manifest: Manifest
    """As it was prepared, nothing calibrated."""
    int8: Int8Check | None = None
    """How int8 arithmetic changed the model's answers to these rows; None if that was not measured."""


class _Wrapped:
    def __init__(self, recipe: EncoderRecipeLike) -> None:
        self.recipe, self.name, self.train_rows = recipe, recipe.name, recipe.train_rows
        self.backend, self.prepare = recipe.backend, recipe.prepare


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
        return ValidationResult(value, calibrated, len(rows))

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
        value = curve[min(self._epoch, len(curve)) - 1]
        return ValidationResult(value, manifest.model_copy(update=fitted), len(self.folds.answers))


def join_folds(folds: Sequence[Fold], read: Sequence[ReadFold]) -> tuple[dict[int, RawAnswer], list[float]]:
    """Return each row's answer after the epoch that is best on the other folds, so that no row chooses its own.

    And the mean score after each epoch, in [0, 1].
    """
    n_epochs = min(len(one.scores) for one in read)
    scores = np.array([one.scores[:n_epochs] for one in read])  # (folds, epochs)
    sizes = np.array([len(fold.at) for fold in folds], dtype=float)
    answers: dict[int, RawAnswer] = {}
    for k, (fold, one) in enumerate(zip(folds, read, strict=True)):
        weights = np.delete(sizes, k) if len(read) > 1 else sizes
        others = np.delete(scores, k, axis=0) if len(read) > 1 else scores
        epoch = best_epoch((weights @ others / weights.sum()).tolist(), round(weights.sum()))
        answers |= dict(zip(fold.at, one.answers[epoch - 1], strict=True))
    curve = (sizes @ scores / sizes.sum()).tolist()
    return dict(sorted(answers.items())), curve
