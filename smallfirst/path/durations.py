"""How long candidates take to fit and to be measured on this machine, what they fetch, and the memory they need.

A sentence encoder is timed on a few of the task's own texts, read and trained on; before a run, when nothing is loaded
or fetched, its size and a product of two matrices tell about how long it takes. A language model's time is that of an
earlier run, else of its own first steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from smallfirst.base.errors import MissingExtra, StageMissing, WeightsNotFound
from smallfirst.base.paths import state_folder
from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.models.catalog import CATALOG, find_weights
from smallfirst.models.local.tokenizer import Tokenizer, load_tokenizer
from smallfirst.models.manifest import MANIFEST, read_manifest
from smallfirst.path.candidates.tuned import FROZEN_SHARE
from smallfirst.path.project.candidates import Candidate, fits_in_folds, project_candidates
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.training.config import TokenizedRow, TrainConfig, epoch_passes, parse_duration
from smallfirst.training.estimates import (
    PROGRAM_BYTES,
    SAMPLE_ROWS,
    SAMPLE_WORDS,
    ValidationWork,
    count_epochs,
    encoder_pace,
    first_epoch,
    guess_pace,
)
from smallfirst.training.recipe import NO_LIMIT, encode_task_rows

SAFETY = 1.15
"""A candidate is taken to need so many times its estimate."""
REGRESSION_S = 1e-3
"""A row in a logistic regression on vectors: 8 s for 10,000 rows in 77 labels."""
OPTIMIZER_BYTES, MEMORY_BYTES_PER_S = 40, 20e9
"""Read and written for each trained weight in a step, and how fast."""
WINDOW_WORDS = 150
"""Words of a long text that are timed as one text: about as many as a small encoder reads at once."""
BEGIN_S = 5.0
"""To load, prepare and save a model that is fine-tuned."""


class LocalBaseModel(NamedTuple):
    """The base model, as far as it is on this machine."""

    tokens: Tokenizer | None
    size: BaseSize | None
    unknown: str


def find_local_base(name: str) -> LocalBaseModel:
    """Return what is on this machine of the base model; download nothing."""
    try:
        folder = find_weights(name, download=False)
        if folder.is_file():
            return LocalBaseModel(None, None, f"{folder.name} is one file, and a base model to train is a folder")
        return LocalBaseModel(
            load_tokenizer(folder), read_base_size(folder), "the base model's files do not tell its size"
        )
    except WeightsNotFound as error:
        return LocalBaseModel(None, None, f"{str(error).splitlines()[0]}\n  next: smallfirst models pull {name}")
    except MissingExtra as error:
        return LocalBaseModel(None, None, str(error))
    except (OSError, ValueError) as error:  # of transformers, which has a tokenizer of its own kind to load
        return LocalBaseModel(None, None, f"the tokenizer of {name} cannot be read: {str(error).splitlines()[0]}")


def tokenize_rows(project: Project, data: Dataset, tokens: Tokenizer) -> list[TokenizedRow]:
    """Tokenize the rows as training does, but without a length limit."""
    codes = range(len(project.task.closed))  # which token stands for a label does not change the length
    return encode_task_rows(data, project.task, tokens, NO_LIMIT, codes)


def validation_work(project: Project, validation: Sequence[TokenizedRow]) -> ValidationWork:
    """Return the validation work after each epoch: all selection rows, or the first ones of open answers."""
    from smallfirst.training.causal_lm import MAX_GENERATED_ROWS  # loads PyTorch

    asked = validation[: len(project.rows.selection)]
    if project.task.closed:
        return ValidationWork(sum(row.n_prompt for row in asked), 0)
    asked = asked[:MAX_GENERATED_ROWS]
    return ValidationWork(sum(row.n_prompt for row in asked), sum(len(row.ids) - row.n_prompt for row in asked))


class TimeNeeded(NamedTuple):
    """Time that a candidate takes, in seconds."""

    fit_s: float
    after_s: float = 0.0
    """To measure it once it is fitted."""

    @property
    def whole_s(self) -> float:
        """The time to fit it and to measure it, with a margin."""
        return SAFETY * (self.fit_s + self.after_s)


def time_needed(project: Project, candidate: Candidate, *, timed: bool = True) -> TimeNeeded | None:
    """Return how long a candidate takes; None if it does not say. Raise SmallfirstError if it lacks weights here.

    `timed`: it is timed, its weights are fetched before unless they are large; else its time is guessed from its size,
    and a language model says nothing.
    """
    minutes, n_fits = candidate.minutes_to_fit(project), max(1, n_folds_of(project, candidate))
    if minutes is not None:  # n folds of (n - 1) / n of the rows, and then all
        return TimeNeeded(60 * minutes * n_fits)
    if candidate.encoder_setting:
        return _encoder_time(project, candidate, timed=timed)
    if timed and candidate.is_language_model and candidate.training_setting:
        return _language_model_time(project, candidate)
    return None


def _encoder_time(project: Project, candidate: Candidate, *, timed: bool) -> TimeNeeded:
    rows, small, n_folds = project.rows, project.file.small, n_folds_of(project, candidate)
    name, every = candidate.encoder_name(small), max(1, len(rows.train) // SAMPLE_ROWS)
    sample, most = rows.train.examples[::every][:SAMPLE_ROWS], candidate.most_words
    texts = tuple(e.text for e in sample)
    if most:  # it reads long texts in windows
        words = [text.split()[:most] for text in texts]
        texts = tuple(" ".join(own[i : i + WINDOW_WORDS]) for own in words for i in range(0, len(own), WINDOW_WORDS))
    share, n_words = len(texts) / max(1, len(sample)), sum(min(len(text.split()), WINDOW_WORDS) for text in texts)
    texts = texts[:: max(1, n_words // SAMPLE_WORDS)]
    if timed and not (candidate.encoder_setting == "larger_encoder" and weights_bytes(name).missing):
        pace = encoder_pace(find_weights(name), texts)
    else:
        pace = guess_pace(weights_bytes(name).total / 4, texts)
    pace = pace._replace(read_s=share * pace.read_s, train_s=share * pace.train_s, tokens=share * pace.tokens)
    n = len(rows.development if n_folds else rows.train)
    validate_s = len(rows.selection) * pace.read_s
    measure_s = (len(rows.selection) + len(rows.calibration) + len(rows.test)) * pace.read_s
    head_s = n * (pace.read_s + REGRESSION_S)
    if not candidate.training_setting:
        fit_s = 2 * n * pace.read_s + n_folds * n * REGRESSION_S if n_folds else head_s + validate_s
        return TimeNeeded(fit_s, after_s=measure_s)
    config: TrainConfig = getattr(small, candidate.training_setting)

    def epoch(n_rows: float) -> tuple[float, int]:
        """Return the seconds and the steps of an epoch on so many rows."""
        n_rows *= epoch_passes(n_rows * pace.tokens, config)
        steps = math.ceil(n_rows * pace.tokens / config.batch_tokens)
        seconds = n_rows * pace.train_s + steps * OPTIMIZER_BYTES * pace.parameters / MEMORY_BYTES_PER_S
        return trained * seconds, steps

    unset = "frozen_layers" not in config.model_fields_set
    trained = 1 - FROZEN_SHARE if unset and n_folds and project.task.answer_labels else 1.0
    epoch_s, steps = epoch(n)
    begin_s = BEGIN_S + head_s
    if n_folds:  # a fine-tune for each fold, which reads its own rows after each epoch, and one on all rows
        epoch_s += n_folds * epoch(n - n / n_folds)[0] + n * pace.read_s
        begin_s *= 1 + n_folds
    else:
        epoch_s += validate_s
    duration = parse_duration(config.duration)
    of = {"ep": 1, "ba": steps, "tok": max(1, steps * config.batch_tokens)}[duration.unit]
    return TimeNeeded(begin_s + epoch_s * duration.amount / of, measure_s)


def n_folds_of(project: Project, candidate: Candidate) -> int:
    """Return in how many folds the candidate is fitted; 0 where selection rows choose."""
    return candidate.n_folds if candidate.n_folds and fits_in_folds(project) else 0


def _language_model_time(project: Project, candidate: Candidate) -> TimeNeeded:
    from smallfirst.training.run import training_pace  # loads PyTorch

    rows, config, name = project.rows, project.file.small.training, project.file.small.base
    folder = find_weights(name)
    tokens, size, unknown = find_local_base(name)
    if tokens is None or size is None:
        raise WeightsNotFound(f"how long {name} takes is not known: {unknown}")

    def encoded(*parts: Dataset) -> list[TokenizedRow]:
        return [row for part in parts for row in tokenize_rows(project, part, tokens)]

    train, selection = encoded(rows.train), encoded(rows.selection)
    held_out = [*selection, *encoded(rows.calibration, rows.test)]
    rate = training_pace(state_folder() / "tasks", (name, folder), config, train).tokens_per_s
    n_tokens = sum(len(row.ids) - 1 for row in train)
    epoch_s = (n_tokens + validation_work(project, selection).as_trained) / rate
    written = 0 if project.task.closed else sum(len(row.ids) - row.n_prompt for row in held_out)
    asked = ValidationWork(sum(row.n_prompt for row in held_out), written)
    epochs = count_epochs(config, len(first_epoch(train, config)), n_tokens)
    return TimeNeeded(BEGIN_S + epoch_s * epochs, asked.as_trained / rate)


def in_minutes(seconds: float) -> str:
    """Return a time as `9 minutes` or, below two minutes, `40 seconds`."""
    return f"{max(0, round(seconds))} seconds" if seconds < 120 else f"{round(seconds / 60)} minutes"


class CandidateForecast(Record):
    """What a candidate takes, before anything was fetched or fitted."""

    name: str
    seconds: float | None
    """To fit and to measure it, if it is fitted to the end; None if that is not known."""
    fetch_mb: int = 0
    """Size of the weights that are not on this machine, in MB."""
    memory_bytes: float = PROGRAM_BYTES
    """About what a run needs at the peak for it, the program included."""


class WeightsBytes(NamedTuple):
    """Size of an encoder's weights."""

    total: int
    missing: int
    """What is not on this machine of it."""


def weights_bytes(name: str) -> WeightsBytes:
    """Return the size of an encoder's weights, fetched or not. Raise WeightsNotFound if nobody knows it."""
    try:
        folder = find_weights(name, download=False)
        return WeightsBytes(sum(file.stat().st_size for file in folder.glob("*.safetensors")), 0)
    except WeightsNotFound:
        known = [10**6 * entry.megabytes for entry in CATALOG if entry.name.casefold() == name.casefold()]
        if not known:
            raise
        return WeightsBytes(known[0], known[0])


def model_bytes(folder: Path) -> int:
    """Return the bytes of the model in `folder`, a frozen encoder elsewhere included; 0: unknown."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    frozen = [path.parent for path in files if path.name == MANIFEST and not (path.parent / "encoder").is_dir()]
    bases = {one.base for one in map(read_manifest, frozen) if one.kind == "encoder"}
    with suppress(WeightsNotFound):
        return sum(path.stat().st_size for path in files) + sum(weights_bytes(base).total for base in bases)
    return 0


def forecast_candidates(project: Project) -> tuple[CandidateForecast, ...]:
    """Return what each candidate of a run takes: its time in the last run on these rows, else about that.

    Nothing is fetched or loaded.
    """
    before = _minutes_before(project)
    found, fetched = list[CandidateForecast](), set[str]()
    for one in project_candidates(project):
        name, values = one.encoder_name(project.file.small), dict[str, float]()
        seconds = 60 * before[one.name] if one.name in before else None
        try:
            needed = time_needed(project, one, timed=False) if seconds is None else None
            if name:
                size = weights_bytes(name)
                # In training the weights, their gradients, and the master weights and moments of AdamW.
                values["memory_bytes"] = PROGRAM_BYTES + (5 if one.training_setting else 1) * size.total
                values["fetch_mb"] = 0 if name in fetched else round(size.missing / 1e6)
                fetched.add(name)
        except WeightsNotFound:
            needed = None
        seconds = sum(needed) if needed else seconds
        found.append(CandidateForecast.model_validate({"name": one.name, "seconds": seconds, **values}))
    return tuple(found)


def _minutes_before(project: Project) -> dict[str, float]:
    """Return what each candidate took in the latest run, if it was on these training rows."""
    try:
        found = RunFolder.latest(project.file.name).fitted()
    except StageMissing:
        return {}
    return found.minutes if found and found.dataset_fingerprint == project.rows.train.content_fingerprint else {}


def forecast_in_words(candidates: Sequence[CandidateForecast]) -> list[str]:
    """Return the time of all candidates, what is fetched and the memory, in a line or two; nothing for nobody."""
    known = {one.name: one.seconds for one in candidates if one.seconds is not None}
    if not known:
        return []
    each = ", ".join(f"{name} {in_minutes(seconds)}" for name, seconds in known.items())
    fetch = sum(one.fetch_mb for one in candidates)
    memory = max(one.memory_bytes for one in candidates) / 1e9
    rest = f"fetches {fetch:,} MB, " if fetch else ""
    return [
        f"fitting: about {in_minutes(sum(known.values()))} to the end, {rest}up to {memory:.1f} GB of memory",
        f"  {each}; what cannot win ends early, and --minutes bounds it all",
    ]
