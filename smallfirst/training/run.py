"""train(): rows and a base model to a Run, watched in MLflow and in an event log, the best epoch kept.

The best epoch is the one with the best mean score on selection rows, which are used for nothing that is promised later.
Its weights are written as soon as it is known to be the best, so a killed run leaves a usable model.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallfirst.data.dataset import Dataset
from smallfirst.errors import TrainingError
from smallfirst.models.codes import choose_codes
from smallfirst.models.local import load_causal, weights_fingerprint
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.records import Record
from smallfirst.tasks import AnyTask
from smallfirst.tracking import TrackedRun
from smallfirst.training import loop
from smallfirst.training.batches import Row, label_rows, text_rows
from smallfirst.training.config import TrainConfig
from smallfirst.training.events import EventLog
from smallfirst.training.exam import code_exam, writing_exam

OnStep = Callable[[loop.Step], None]


class Run(Record):
    """A finished fine-tune."""

    run_id: str
    """MLflow's id of the run."""
    task: str
    """Task name."""
    base: str
    """Base model by name."""
    config: TrainConfig
    """How it was trained."""
    dataset_fingerprint: str
    """The training rows."""
    n_train: int
    """How many."""
    seconds: float
    """Wall-clock time of the training itself, validation included, loading and saving not."""
    tokens_per_s: float
    """Real tokens per second of training."""
    best_epoch: int
    """The epoch whose weights were kept, from 1."""
    validation_curve: tuple[tuple[float, float], ...]
    """(epoch, mean score on selection rows: accuracy for closed answers, else the task's own score)."""
    loss_curve: tuple[tuple[int, float], ...]
    """(step, loss), at most 200 points."""
    folder: Path
    """Folder of the model."""


def train(
    task: AnyTask,
    train_rows: Dataset,
    selection: Dataset,
    config: TrainConfig,
    *,
    base: tuple[str, Path],
    tracked: TrackedRun,
    folder: Path,
    on_step: OnStep = lambda _: None,
) -> Run:
    """Fine-tune the base model (name and folder) on the rows; the model is written to `folder`/model.

    Raises DataError for rows that cannot be trained on, TrainingError if the run goes wrong.
    """
    log = EventLog(folder / "events.jsonl")
    log.append("CREATED", f"fine-tune of {base[0]} on {len(train_rows)} rows", config=config.model_dump())
    try:
        return _Trainer(task, train_rows, selection, config, base, tracked, folder, log).run(on_step)
    except KeyboardInterrupt:
        log.append("STOPPED", "interrupted")
        raise
    except Exception as error:
        log.append("FAILED", f"{type(error).__name__}: {error}")
        raise


class _Trainer:
    """One run's moving parts, so that the callbacks of the loop stay short."""

    def __init__(
        self,
        task: AnyTask,
        train_rows: Dataset,
        selection: Dataset,
        config: TrainConfig,
        base: tuple[str, Path],
        tracked: TrackedRun,
        folder: Path,
        log: EventLog,
    ) -> None:
        self.task, self.train_rows, self.selection, self.config = task, train_rows, selection, config
        self.base, self.tracked, self.folder, self.log = base, tracked, folder, log
        self.validation_curve: list[tuple[float, float]] = []
        self.loss_curve: list[tuple[int, float]] = []
        self.best, self.best_epoch, self.saving_s = -1.0, 0, 0.0
        self.last: loop.Step | None = None

    def run(self, on_step: OnStep) -> Run:
        seed_everything(self.config.seed)
        model, self.tokenizer = load_causal(self.base[1])
        rows = self._rows()
        self.model = _with_adapters(model, self.config) if self.config.method == "lora" else model
        total, _ = loop.plan(rows, self.config)
        self.log.append("TRAIN_STARTED", f"{total} steps", steps=total)
        began = time.perf_counter()
        loop.fit(
            self.model,
            rows,
            self.config,
            on_step=lambda step: self._step(step, on_step),
            on_epoch=self._epoch,
        )
        seconds = time.perf_counter() - began - self.saving_s
        return self._finish(seconds)

    def _rows(self) -> list[Row]:
        """The rows as tokens; a closed answer is one code token, any other is written out."""
        most = self.config.max_seq_tokens
        closed = bool(self.task.closed)
        codes = choose_codes(self.task.closed, self.tokenizer) if closed else ()
        self.manifest = Manifest(
            kind="codes" if closed else "writes", task=self.task, base=self.base[0], codes=codes, max_tokens=most
        )
        if closed:
            return label_rows(self.train_rows, self.task, codes=codes, tokenizer=self.tokenizer, max_tokens=most)
        return text_rows(self.train_rows, self.task, tokenizer=self.tokenizer, max_tokens=most)

    def _step(self, step: loop.Step, on_step: OnStep) -> None:
        self.last = step
        self.loss_curve.append((step.step, step.loss))
        self.tracked.log_metrics(
            step.step,
            {
                "loss": step.loss,
                "learning_rate": step.learning_rate,
                "tokens_per_s": step.tokens_per_s,
                "epoch": step.epoch,
            },
        )
        on_step(step)

    def _epoch(self, epoch: int) -> None:
        examine = code_exam if self.task.closed else writing_exam
        exam = examine(self.model, self.tokenizer, self.manifest, self.selection)
        self.validation_curve.append((float(epoch), exam.value))
        step = self.last.step if self.last else 0
        self.tracked.log_metrics(step, {"validation_score": exam.value})
        self.log.append("EPOCH_FINISHED", f"epoch {epoch}: {exam.value:.3f}", validation_score=exam.value)
        if exam.value >= self.best:  # of equals the later: its learning rate has come further down
            began = time.perf_counter()
            self.best, self.best_epoch = exam.value, epoch
            self._save(exam.learnt)
            self.saving_s += time.perf_counter() - began

    def _save(self, learnt: Manifest) -> None:
        """Weights and tokenizer, then the manifest: a folder without one is not a model."""
        target = self.folder / "model"
        (target / "smallfirst.json").unlink(missing_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        model = _merged(self.model) if self.config.method == "lora" else self.model
        model.save_pretrained(target)
        self.tokenizer.save_pretrained(target)
        write_manifest(
            target,
            learnt.model_copy(update={"weights_fingerprint": weights_fingerprint(model)}),
        )

    def _finish(self, seconds: float) -> Run:
        if self.last is None or not self.best_epoch:
            raise TrainingError("the run ended before its first step")
        every = math.ceil(len(self.loss_curve) / 200)
        run = Run(
            run_id=self.tracked.run_id,
            task=self.task.name,
            base=self.base[0],
            config=self.config,
            dataset_fingerprint=self.train_rows.content_fingerprint,
            n_train=len(self.train_rows),
            seconds=seconds,
            tokens_per_s=self.last.tokens_per_s,
            best_epoch=self.best_epoch,
            validation_curve=tuple(self.validation_curve),
            loss_curve=tuple(self.loss_curve[::every]),
            folder=self.folder / "model",
        )
        run.save(self.folder / "run.json")
        self.log.append("COMPLETED", f"best epoch {self.best_epoch}: {self.best:.3f}", seconds=seconds)
        return run


def seed_everything(seed: int) -> None:
    """Seed every generator that training may draw from, before anything random happens."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _with_adapters(model: Any, config: TrainConfig) -> Any:
    """The model with LoRA adapters (Hu et al. 2021) on all linear layers of its blocks; only they are trained.

    The base stays bf16; adapters are bf16 with fp32 masters like everything trained here.
    """
    import peft

    adapters = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules="all-linear",
        task_type=peft.TaskType.CAUSAL_LM,
    )
    wrapped = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return wrapped.base_model.model  # same object graph, without the wrapper's own forward


def _merged(model: Any) -> Any:
    """A copy with the adapters folded into the weights, in fp32 before rounding to bf16 once."""
    import copy

    from peft.tuners.lora import LoraLayer

    merged = copy.deepcopy(model).float()
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = merged.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    merged = merged.to(torch.bfloat16)
    # peft marks the model as quantised or adapted in places that save_pretrained would follow.
    merged._hf_peft_config_loaded = False
    return merged
