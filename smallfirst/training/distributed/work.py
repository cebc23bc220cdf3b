"""What the processes of a training are told, as files in the run's folder, and the function that each of them runs.

Nothing but JSON and safetensors goes from process to process by way of the folder, which all machines must share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from smallfirst import errors
from smallfirst.data.dataset import Dataset
from smallfirst.errors import SmallfirstError, TrainingError
from smallfirst.files import write_atomically
from smallfirst.paths import state_folder
from smallfirst.records import Record
from smallfirst.registry.runs import UntrackedRun, resume_run
from smallfirst.tasks import AnyTask
from smallfirst.training.config import TrainConfig
from smallfirst.training.distributed.group import Group
from smallfirst.training.events import EventLog
from smallfirst.training.loop import StepMetrics
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import STOP_FILE, EpochCallback, Run, StepCallback, train

FOLDER = "workers"
"""Folder in a run's folder with all that the processes are told and tell."""
REPORT_EVERY_S = 1.0
WAIT_S = 6 * 3600
"""How long processes wait for one another: the first one alone validates and writes."""


class Work(Record):
    """A fine-tune that several processes carry out together; the rows stand beside it."""

    task: AnyTask
    config: TrainConfig
    base: str
    weights: Path
    """Folder of the base model, on every machine."""
    run_id: str
    """The MLflow run that the first process logs to."""
    state: Path
    """State folder of the task."""
    shard: bool = False
    save_every_s: float = 60


def write_work(
    folder: Path,
    recipe: TaskRecipe,
    config: TrainConfig,
    base: tuple[str, Path],
    run_id: str,
    *,
    shard: bool = False,
    save_every_s: float = 60,
) -> None:
    """Write what the processes need into a run's folder; what an earlier attempt told is removed."""
    place = folder / FOLDER
    for stale in (place / "error.json", place / "progress.json", folder / STOP_FILE):
        stale.unlink(missing_ok=True)
    recipe.train_rows.save(place / "train.json")
    recipe.selection.save(place / "selection.json")
    work = Work(
        task=recipe.task,
        config=config,
        base=base[0],
        weights=base[1].absolute(),
        run_id=run_id,
        state=state_folder(),
        shard=shard,
        save_every_s=save_every_s,
    )
    work.save(place / "work.json")


def read_work(folder: Path) -> tuple[Work, TaskRecipe]:
    """Return what `write_work` wrote."""
    work = Work.load(folder / FOLDER / "work.json")
    rows, selection = (Dataset.load(folder / FOLDER / f"{name}.json") for name in ("train", "selection"))
    return work, TaskRecipe(work.task, rows, selection)


def do_work(
    folder: Path,
    *,
    on_step: StepCallback = lambda _: None,
    on_epoch: EpochCallback = lambda *_: False,
) -> Run:
    """Train as one process of the torch.distributed group; the first one goes on with the MLflow run."""
    work, recipe = read_work(folder)
    os.environ["SMALLFIRST_HOME"] = str(work.state)
    leads = Group.joined().leads
    tracked = resume_run(work.run_id) if leads else UntrackedRun(work.run_id)
    try:
        return train(
            recipe,
            work.config,
            base=(work.base, work.weights),
            tracked=tracked,
            folder=folder,
            on_step=on_step,
            on_epoch=on_epoch,
            save_every_s=work.save_every_s,
            together=True,
            shard=work.shard,
        )
    finally:
        if leads:
            tracked.flush()


def do_work_and_tell(folder: Path) -> None:
    """Train as `do_work`; write the last step once a second, and a user's error, for `Watch` to read.

    Return at once where an earlier attempt ended in such an error: trying again would not help.
    """
    place = folder / FOLDER
    if (place / "error.json").is_file():
        return
    told_at = 0.0

    def on_step(step: StepMetrics) -> None:
        nonlocal told_at
        if step.ends_epoch or time.monotonic() - told_at >= REPORT_EVERY_S:
            write_atomically(place / "progress.json", json.dumps(step._asdict()).encode())
            told_at = time.monotonic()

    try:
        do_work(folder, on_step=on_step)
    except SmallfirstError as error:
        told = {"kind": type(error).__name__, "message": error.args[0], "hint": error.hint}
        write_atomically(place / "error.json", json.dumps(told).encode())
        raise


class Watch:
    """Follow a training from outside by what its first process writes."""

    def __init__(
        self, folder: Path, on_step: StepCallback, on_epoch: EpochCallback, log: Callable[[str], None]
    ) -> None:
        self.folder, self.on_step, self.on_epoch, self.log = folder, on_step, on_epoch, log
        self._events = EventLog(folder / "events.jsonl")
        self._seen, self._epochs = len(self._events.read()), 0

    def look(self) -> None:
        """Call the callbacks for what is new; where `on_epoch` says so, ask the training to end."""
        with suppress(OSError, ValueError):  # it is not there yet
            self.on_step(StepMetrics(**json.loads((self.folder / FOLDER / "progress.json").read_bytes())))
        events = self._events.read()
        for event in events[self._seen :]:
            if event.kind in ("RESUMED", "CHECKPOINT_FAILED"):
                self.log(f"{event.kind.lower().replace('_', ' ')}: {event.message}")
            if event.kind == "EPOCH_FINISHED":
                self._epochs += 1
                score = next((float(value) for value in event.values.values()), 0.0)
                if self.on_epoch(self._epochs, score):
                    (self.folder / STOP_FILE).touch()
        self._seen = len(events)

    def raise_error(self) -> None:
        """Raise the error that a process told, if one did."""
        path = self.folder / FOLDER / "error.json"
        if path.is_file():
            told = json.loads(path.read_bytes())
            raise getattr(errors, told["kind"], TrainingError)(told["message"], hint=told["hint"])
