"""train(): from rows and a base model to a Run, tracked in MLflow and in an event log, one epoch kept.

The weights of the best epoch so far (`best_epoch`) are written at once, so a killed run leaves a usable model;
called again on the same folder, train() continues from its checkpoint to the weights of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch

from smallfirst.base.errors import Cancelled, TrainingError
from smallfirst.base.files import locked
from smallfirst.base.records import Record, fingerprint
from smallfirst.measuring.out_of_fold import best_epoch
from smallfirst.models.batching import usable_cores
from smallfirst.models.local.weights import release_memory
from smallfirst.models.manifest import MANIFEST, Manifest, base_sha256, write_manifest
from smallfirst.registry.runs import TrackedRun
from smallfirst.training.causal_lm import CausalBackend, as_kept
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.estimates import Pace, earlier_pace, require_memory
from smallfirst.training.events import EventLog
from smallfirst.training.loop import CheckpointStore, Group, StepMetrics, TrainingLoop, whole_or_gone
from smallfirst.training.recipe import Recipe

CANCEL_FILE, STOP_FILE = "cancel", "stop"
"""Files in a run's folder that end the run within one step: as cancelled, or with the best epoch so far."""

StepCallback = Callable[[StepMetrics], None]
EpochCallback = Callable[[int, float], bool]
"""Called with the number of a validated epoch, from 1, and its score. Return True to end the run here."""


class Run(Record):
    """A finished fine-tune."""

    run_id: str
    task: str
    base: str
    base_sha256: str
    """Of all files of the base."""
    config: TrainConfig
    dataset_fingerprint: str
    n_train: int
    seconds: float
    """Wall-clock time of the training itself, validation included, loading and saving not."""
    tokens_per_s: float
    """As `StepMetrics.tokens_per_s`."""
    precision: str = ""
    """In which it learnt, with the reason."""
    best_epoch: int
    """The epoch whose weights were kept, from 1."""
    validation_curve: tuple[tuple[float, float], ...]
    """(epoch, validation score: accuracy on selection rows for closed answers, else the task's own score)."""
    loss_curve: tuple[tuple[int, float], ...]
    """(step, loss), at most 200 points."""
    folder: Path

    @property
    def best_score(self) -> float:
        """The validation score of the epoch whose weights were kept."""
        return dict(self.validation_curve)[self.best_epoch]


def train(
    recipe: Recipe,
    config: TrainConfig,
    *,
    base: tuple[str, Path],
    tracked: TrackedRun,
    folder: Path,
    on_step: StepCallback = lambda _: None,
    on_epoch: EpochCallback = lambda *_: False,
    save_every_s: float = 60,
) -> Run:
    """Fine-tune the base model (name and folder) and write the result to `folder`/model.

    A folder with a checkpoint is continued, one with a finished run returns that Run. Checkpoints are at least
    `save_every_s` apart. `on_epoch` may end the run early. Raise DataError for rows that cannot be trained on,
    Cancelled once the folder holds a file CANCEL_FILE, TrainingError if the run fails or another process trains in
    `folder`; what was saved before stays.

    The processes of a torch.distributed group call this with equal arguments and divide each batch. The first one
    validates, logs and writes; its callbacks count.
    """
    group = Group.joined()
    with hold_folder(folder) if group.leads else contextlib.nullcontext():
        checkpoints = CheckpointStore(folder / "checkpoint", least_s=save_every_s)
        trainer = _Trainer(recipe, config, base, tracked, folder, group, checkpoints)
        if (folder / "run.json").is_file():
            checkpoints.clear()  # a kill may have come before
            return Run.load(folder / "run.json")
        try:
            return trainer.run(on_step, on_epoch)
        except (KeyboardInterrupt, Cancelled) as stop:
            trainer.log.append("STOPPED", str(stop) or "interrupted")
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk may be full: the first error matters
                trainer.log.append("FAILED", f"{type(error).__name__}: {error}")
            if isinstance(error, OSError):
                raise TrainingError(
                    f"cannot write to {folder}: {error.strerror or error}",
                    hint="free disk space or correct its permissions; what was saved is kept",
                ) from error
            raise


def hold_folder(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder for one training. Raise TrainingError if another process trains in it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = TrainingError(f"another process is training in {folder}", hint="wait until it ends, or use another folder")
    return locked(folder / "train.lock", otherwise=busy)


@dataclass
class _Progress:
    """What a checkpoint keeps of a run beside its tensors."""

    validation_curve: list[tuple[float, float]] = field(default_factory=list)
    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = 0
    epoch: int = 0
    seconds: float = 0.0
    """Of training and validation; loading and saving not."""


@dataclass
class _Trainer:
    recipe: Recipe
    config: TrainConfig
    base: tuple[str, Path]
    tracked: TrackedRun
    folder: Path
    group: Group
    checkpoints: CheckpointStore
    done: _Progress = field(default_factory=_Progress)

    def run(self, on_step: StepCallback, on_epoch: EpochCallback) -> Run:
        if not self.log.read():
            words = f"fine-tune of {self.base[0]} on {len(self.recipe.train_rows)} rows"
            self.log.append("CREATED", words, config=self.config.model_dump(), run_id=self.tracked.run_id)
        for seed_generator in (random.seed, np.random.seed, torch.manual_seed):
            seed_generator(self.config.seed)
        self.base_sha256 = base_sha256(self.base[1]) if self.group.leads else ""
        backend = self.backend = self.recipe.backend
        require_memory(self.base, self.config)
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        self.model, self.tokenizer = backend.load(self.base[1], self.config)
        rows, self.manifest = self.recipe.prepare(self.tokenizer, self.config, self.base[0])
        began_in = next((e.values.get("precision") for e in self.log.read() if e.kind == "TRAIN_STARTED"), None)
        self.precision = backend.begin(self.model, rows, self.config, began_in)
        loop = TrainingLoop(backend, self.model, rows, self.config)
        self._start(loop)
        for step in loop.steps():
            self.done.loss_curve.append((step.step, step.loss))
            names = ("loss", "learning_rate", "tokens_per_s", "epoch")
            self.tracked.log_metrics(step.step, {name: getattr(step, name) for name in names})
            on_step(step)
            if step.ends_epoch:
                value = self._validate(step)
                if self.group.agree(on_epoch(self.done.epoch, value)):
                    break
            if self.config.patience is not None and self.done.epoch - self.done.best_epoch >= self.config.patience:
                break
            if not self._goes_on(loop, step):
                break
        self._count_time()
        return self._finish(loop)

    def _start(self, loop: TrainingLoop) -> None:
        """Begin, or go on from the checkpoint if there is one."""
        saved, events = self.checkpoints.latest(), self.log.read()
        if saved is not None:
            if self.group.leads and saved.figures["of"] != self._fingerprint():
                raise TrainingError(
                    f"{self.checkpoints.folder} is of another run: its rows, settings or base model differ",
                    hint="restore what it began with, or remove the folder to start again",
                )
            loop.restore(saved, saved.figures["fit"])
            self.done = _Progress(**saved.figures["run"])
            if self.group.leads:
                _restore_model(self.folder / "model")
        if events and events[-1].kind == "CREATED":
            words = f"{loop.total} steps in {self.precision.words}; {torch.get_num_threads()} threads"
            self.log.append("TRAIN_STARTED", words, steps=loop.total, precision=self.precision.name)
        else:
            self.log.append("RESUMED", f"from step {loop.step} of {loop.total}", steps=loop.total)
        self.since = time.perf_counter()

    @cached_property
    def log(self) -> EventLog:
        return EventLog(self.folder / "events.jsonl", writes=self.group.leads)

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.done.seconds += now - self.since
        self.since = now

    def _validate(self, step: StepMetrics) -> float:
        """Validate the epoch, keep its weights if none was better, and return its score."""
        done = self.done
        done.epoch += 1
        with as_kept(self.model):
            result = self.recipe.validate(self.model, self.tokenizer, self.manifest) if self.group.leads else None
            value, keeps = self.group.agree(result.value if result else 0.0), True
            if result:
                done.validation_curve.append((float(done.epoch), value))
                keeps = best_epoch([score for _, score in done.validation_curve], result.n_rows) == done.epoch
                self.tracked.log_metrics(step.step, {result.measure: value})
            words = f"epoch {done.epoch}: {value:.3f}" if result else f"epoch {done.epoch}"
            self.log.append("EPOCH_FINISHED", words, **({result.measure: value} if result else {}))
            if self.group.agree(keeps):
                self._count_time()
                if self.group.leads:
                    self._save(result.manifest if result else self.manifest)
                done.best, done.best_epoch, self.since = value, done.epoch, time.perf_counter()
        return value

    def _goes_on(self, loop: TrainingLoop, step: StepMetrics) -> bool:
        """Write a checkpoint if one is due; return False to end the run here. Raise Cancelled."""
        wanted = (CANCEL_FILE, STOP_FILE, "checkpoint", "")
        here = [(self.folder / CANCEL_FILE).exists(), (self.folder / STOP_FILE).exists(), self.checkpoints.due, True]
        next_is = wanted[int(self.group.agree(here.index(True)))]
        if next_is == CANCEL_FILE:
            raise Cancelled(f"cancelled at step {step.step} of {loop.total}")
        if next_is == "checkpoint" and self.group.leads:
            self._checkpoint(loop, step)
        return next_is != STOP_FILE

    def _checkpoint(self, loop: TrainingLoop, step: StepMetrics) -> None:
        self._count_time()
        tensors, fit = loop.state()
        try:
            figures = {"of": self._fingerprint(), "fit": fit, "run": asdict(self.done)}
            self.checkpoints.write(step.step, tensors, figures)
            self.log.append("CHECKPOINT_SAVED", f"step {step.step} of {loop.total}", step=step.step)
        except OSError as error:
            self.log.append("CHECKPOINT_FAILED", f"step {step.step}: {error}")
        self.since = time.perf_counter()

    def _fingerprint(self) -> str:
        """Return a fingerprint of all that the weights depend on but the library versions."""
        rows = self.recipe.train_rows.content_fingerprint
        return fingerprint([self.config.model_dump(), rows, self.base[0], self.base_sha256])

    def _save(self, manifest: Manifest) -> None:
        """Replace the content of the model folder by these weights; if this fails, it keeps those it has."""
        place, draft = self.folder / "model", self.folder / "model.draft"
        shutil.rmtree(draft, ignore_errors=True)
        with whole_or_gone(draft):
            weights = self.backend.save(self.model, self.tokenizer, draft)
            pins = {"weights_fingerprint": weights, "base_sha256": self.base_sha256}
            write_manifest(draft, manifest.model_copy(update=pins))
        _replace(place, draft)

    def _finish(self, loop: TrainingLoop) -> Run:
        done = self.done
        if not done.best_epoch:
            raise TrainingError("the run ended before its first step")
        if self.group.leads:
            run = Run(
                run_id=self.tracked.run_id,
                task=self.recipe.name,
                base=self.base[0],
                base_sha256=self.base_sha256,
                config=self.config,
                dataset_fingerprint=self.recipe.train_rows.content_fingerprint,
                n_train=len(self.recipe.train_rows),
                seconds=done.seconds,
                tokens_per_s=loop.tokens / loop.busy_s,
                precision=self.precision.words,
                best_epoch=done.best_epoch,
                validation_curve=tuple(done.validation_curve),
                loss_curve=tuple(done.loss_curve[:: math.ceil(len(done.loss_curve) / 200)]),
                folder=self.folder / "model",
            )
            run.save(self.folder / "run.json")
            self.log.append("COMPLETED", f"best epoch {done.best_epoch}: {done.best:.3f}", seconds=done.seconds)
            self.checkpoints.clear()
        self.group.agree(0)  # wait for the first process
        return Run.load(self.folder / "run.json")


def _replace(place: Path, draft: Path) -> None:
    """Replace `place` by `draft`; `_restore_model` repairs what a crash in between leaves."""
    before = place.with_suffix(".before")
    shutil.rmtree(before, ignore_errors=True)
    if place.exists():
        place.rename(before)
    draft.rename(place)
    shutil.rmtree(before, ignore_errors=True)


def _restore_model(place: Path) -> None:
    for other in (place.with_suffix(".draft"), place.with_suffix(".before")):
        if not place.exists() and (other / MANIFEST).is_file():
            other.rename(place)


MEASURED_S = 2.0
"""Time for the first steps that are timed, after one that is not: it is slower."""


def training_pace(tasks: Path, base: tuple[str, Path], config: TrainConfig, rows: Sequence[TokenizedRow]) -> Pace:
    """Return the pace of the latest run below `tasks` with this base (name, folder) and method.

    Without one, that of the first steps, which takes some seconds and the memory of the fine-tune.
    """
    if (known := earlier_pace(tasks, base[0], config.method)) is not None:
        return known
    measured = _of_first_steps(base[1], config.model_dump_json(), tuple(rows))
    return Pace(measured, f"its first steps read {measured:,.0f} tokens/s")


@cache
def _of_first_steps(folder: Path, config: str, rows: tuple[TokenizedRow, ...]) -> float:
    settings, backend = TrainConfig.model_validate_json(config), CausalBackend()
    model, _ = backend.load(folder, settings)
    backend.begin(model, rows, settings)
    loop = TrainingLoop(backend, model, rows, settings)
    first, rate = (0, 0.0), 0.0
    for step in loop.steps():
        rate = (loop.tokens - first[0]) / (loop.busy_s - first[1])
        if step.step == 1:
            first = loop.tokens, loop.busy_s
        elif loop.busy_s - first[1] >= MEASURED_S:
            break
    del model, loop
    release_memory()
    return rate
