"""How long a candidate takes on this machine: to fit, and to be measured on the held-out rows.

A sentence encoder is timed on a few of the task's own texts, read and trained on. A language model's time is that of
an earlier run, else of its own first steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from smallfirst.data.dataset import Dataset
from smallfirst.errors import WeightsNotFound
from smallfirst.models.catalog import find_weights
from smallfirst.paths import state_folder
from smallfirst.pipeline.preflight.check import find_local_base, tokenize_rows, validation_work
from smallfirst.project.candidates import Candidate, fits_in_folds
from smallfirst.project.project import Project
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.config import TrainConfig, parse_duration
from smallfirst.training.estimates import ValidationWork, count_epochs, first_epoch
from smallfirst.training.hardware import SAMPLE_ROWS, encoder_pace

REGRESSION_S = 1e-3
"""A row in a logistic regression on vectors: 8 s for 10,000 rows in 77 labels."""
OPTIMIZER_BYTES, MEMORY_BYTES_PER_S = 40, 20e9
"""Read and written for each trained weight in a step, and how fast."""
BEGIN_S = 5.0
"""To load, prepare and save a model that is fine-tuned."""


class TimeNeeded(NamedTuple):
    """Time that a candidate takes, in seconds."""

    begin_s: float
    """To fit it, but for its epochs."""
    epoch_s: float = 0.0
    """An epoch with its validation; 0 for one that is not trained in epochs."""
    epochs: int = 0
    """Epochs of its settings; 0 if it is not trained in epochs."""
    after_s: float = 0.0
    """To measure it once it is fitted, and to fit it on parts of the rows for the learning curve."""

    def fit_s(self, epochs: int) -> float:
        """Return the time to fit it in so many epochs."""
        return self.begin_s + self.epoch_s * epochs

    def whole_s(self, epochs: int) -> float:
        """Return the time to fit it in so many epochs and to measure it."""
        return self.fit_s(epochs) + self.after_s


def time_needed(project: Project, candidate: Candidate) -> TimeNeeded | None:
    """Return how long a candidate takes; None if it does not say. Raise SmallfirstError if it lacks weights here."""
    minutes, n_fits = candidate.minutes_to_fit(project), max(1, _n_folds(project, candidate))
    if minutes is not None:  # n folds of (n - 1) / n of the rows, and then all
        return TimeNeeded(60 * minutes * n_fits, after_s=60 * minutes if candidate.learning_curve else 0.0)
    if candidate.encoder_setting:
        return _encoder_time(project, candidate)
    if candidate.is_language_model and candidate.training_setting:
        return _language_model_time(project, candidate)
    return None


def _encoder_time(project: Project, candidate: Candidate) -> TimeNeeded:
    rows, small = project.rows, project.file.small
    folder = find_weights(candidate.encoder_name(small), download=candidate.measured_by_default)
    every = max(1, len(rows.train) // SAMPLE_ROWS)
    pace = encoder_pace(folder, tuple(e.text for e in rows.train.examples[::every][:SAMPLE_ROWS]))
    n, validate_s, n_folds = len(rows.train), len(rows.selection) * pace.read_s, _n_folds(project, candidate)
    measure_s = (len(rows.selection) + len(rows.calibration) + len(rows.test)) * pace.read_s
    head_s = n * (pace.read_s + REGRESSION_S)
    curve_s = head_s if candidate.learning_curve else 0.0
    if n_folds:
        n += len(rows.selection)
    if not candidate.training_setting:
        fit_s = 2 * n * pace.read_s + n_folds * n * REGRESSION_S if n_folds else head_s + validate_s
        return TimeNeeded(fit_s, after_s=measure_s + curve_s)
    from smallfirst.training.recipes.encoders import epoch_passes  # loads PyTorch

    config: TrainConfig = getattr(small, candidate.training_setting)

    def epoch(n_rows: float) -> tuple[float, int]:
        """Return the seconds and the steps of an epoch on so many rows."""
        if project.task.answer_labels:
            n_rows *= epoch_passes(n_rows * pace.tokens, config)
        steps = math.ceil(n_rows * pace.tokens / config.batch_tokens)
        return n_rows * pace.train_s + steps * OPTIMIZER_BYTES * pace.parameters / MEMORY_BYTES_PER_S, steps

    epoch_s, steps = epoch(n)
    begin_s = BEGIN_S + n * (pace.read_s + REGRESSION_S)
    if n_folds:  # a fine-tune for each fold, which reads its own rows after each epoch, and one on all rows
        epoch_s += n_folds * epoch(n - n / n_folds)[0] + n * pace.read_s
        begin_s *= 1 + n_folds
    else:
        epoch_s += validate_s
    duration = parse_duration(config.duration)
    of = {"ep": 1, "ba": steps, "tok": max(1, steps * config.batch_tokens)}[duration.unit]
    return _in_epochs(begin_s, epoch_s, duration.amount / of, measure_s)


def _n_folds(project: Project, candidate: Candidate) -> int:
    return candidate.n_folds if candidate.n_folds and fits_in_folds(project) else 0


def _language_model_time(project: Project, candidate: Candidate) -> TimeNeeded:
    rows, config, name = project.rows, project.file.small.training, project.file.small.base
    folder = find_weights(name, download=candidate.measured_by_default)
    tokens, size, unknown = find_local_base(name)
    if tokens is None or size is None:
        raise WeightsNotFound(f"how long {name} takes is not known: {unknown}")

    def encoded(*parts: Dataset) -> list[TokenizedRow]:
        return [row for part in parts for row in tokenize_rows(project, part, tokens)]

    train, selection = encoded(rows.train), encoded(rows.selection)
    held_out = [*selection, *encoded(rows.calibration, rows.test)]
    from smallfirst.training.pace import training_pace  # loads PyTorch

    rate = training_pace(state_folder() / "tasks", (name, folder), config, train).tokens_per_s
    n_tokens = sum(len(row.ids) - 1 for row in train)
    epoch_s = (n_tokens + validation_work(project, selection).as_trained) / rate
    written = 0 if project.task.closed else sum(len(row.ids) - row.n_prompt for row in held_out)
    asked = ValidationWork(sum(row.n_prompt for row in held_out), written)
    epochs = count_epochs(config, len(first_epoch(train, config)), n_tokens)
    return _in_epochs(BEGIN_S, epoch_s, epochs, asked.as_trained / rate)


def _in_epochs(begin_s: float, epoch_s: float, epochs: float, after_s: float) -> TimeNeeded:
    """Return the time of a fine-tune; one of less than an epoch has no epochs to be shortened by."""
    if epochs < 1:
        return TimeNeeded(begin_s + epochs * epoch_s, after_s=after_s)
    return TimeNeeded(begin_s, epoch_s, math.ceil(epochs), after_s)
