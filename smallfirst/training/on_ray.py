"""One fine-tune on several workers of a Ray cluster, by Ray Train. A lost worker is replaced, and the run goes on.

Workers are told what to do by files in the run's folder, which all machines must share, and tell what they did there:
nothing but JSON and safetensors goes from process to process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from smallfirst.base import errors
from smallfirst.base.errors import SmallfirstError, TrainingError
from smallfirst.base.files import write_atomically
from smallfirst.base.paths import state_folder
from smallfirst.base.ray_session import ray_session
from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset
from smallfirst.registry.runs import UntrackedRun, resume_run
from smallfirst.tasks import AnyTask
from smallfirst.training.config import TrainConfig
from smallfirst.training.events import EventLog
from smallfirst.training.loop import Group, StepMetrics
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import STOP_FILE, EpochCallback, Run, StepCallback, train

FOLDER = "workers"
"""Folder in a run's folder with all that the workers are told and tell."""
MAX_LOST = 5
"""How often workers may be lost before a run fails; each time it goes on from its last checkpoint."""
LOOK_EVERY_S, REPORT_EVERY_S = 0.5, 1.0
WAIT_S = 6 * 3600
"""How long workers wait for one another: the first one alone validates and writes."""


class Work(Record):
    """A fine-tune that several workers carry out together."""

    task: AnyTask
    train_rows: Dataset
    selection: Dataset
    config: TrainConfig
    base: str
    weights: Path
    """Folder of the base model, on every machine."""
    run_id: str
    state: Path
    save_every_s: float


def write_work(
    folder: Path,
    recipe: TaskRecipe,
    config: TrainConfig,
    base: tuple[str, Path],
    run_id: str,
    *,
    save_every_s: float = 60,
) -> None:
    """Write what the workers need into a run's folder; what an earlier attempt told is removed."""
    place = folder / FOLDER
    for stale in (place / "error.json", place / "progress.json", folder / STOP_FILE):
        stale.unlink(missing_ok=True)
    Work(
        task=recipe.task,
        train_rows=recipe.train_rows,
        selection=recipe.selection,
        config=config,
        base=base[0],
        weights=base[1].absolute(),
        run_id=run_id,
        state=state_folder(),
        save_every_s=save_every_s,
    ).save(place / "work.json")


def do_work(folder: Path, *, on_step: StepCallback = lambda _: None) -> Run | None:
    """Train as one process of the torch.distributed group; the first one goes on with the MLflow run.

    The last step is written once a second, and a user's error, for `RunWatch` to read. Return None at once where an
    earlier attempt ended in such an error: trying again would not help.
    """
    place, told_at = folder / FOLDER, 0.0
    if (place / "error.json").is_file():
        return None
    work, leads = Work.load(place / "work.json"), Group.joined().leads
    os.environ["SMALLFIRST_HOME"] = str(work.state)
    tracked = resume_run(work.run_id) if leads else UntrackedRun(work.run_id)

    def tell(step: StepMetrics) -> None:
        nonlocal told_at
        if step.ends_epoch or time.monotonic() - told_at >= REPORT_EVERY_S:
            write_atomically(place / "progress.json", json.dumps(step._asdict()).encode())
            told_at = time.monotonic()
        on_step(step)

    try:
        return train(
            TaskRecipe(work.task, work.train_rows, work.selection),
            work.config,
            base=(work.base, work.weights),
            tracked=tracked,
            folder=folder,
            on_step=tell,
            save_every_s=work.save_every_s,
        )
    except SmallfirstError as error:
        told = {"kind": type(error).__name__, "message": error.args[0], "hint": error.hint}
        write_atomically(place / "error.json", json.dumps(told).encode())
        raise
    finally:
        if leads:
            tracked.flush()


class RunWatch:
    """Follow a training from outside by what its first worker writes."""

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
        path = self.folder / FOLDER / "error.json"
        if path.is_file():
            told = json.loads(path.read_bytes())
            raise getattr(errors, told["kind"], TrainingError)(told["message"], hint=told["hint"])


def train_on_ray(
    folder: Path, n_workers: int, *, on_step: StepCallback, on_epoch: EpochCallback, log: Callable[[str], None]
) -> Run:
    """Carry out the work in a run's folder (`write_work`) on `n_workers` workers, each with a GPU where there are any.

    Raise what the workers raise, ConfigError without a usable cluster, TrainingError if workers are lost too often.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "3")  # nobody answers a worker that was lost
    watch = RunWatch(folder, on_step, on_epoch, log)
    with ray_session(num_cpus=max(n_workers, os.cpu_count() or 1)) as ray:
        try:
            run_beside(_trainer(ray, folder, n_workers).fit, watch.look)
        except Exception as error:
            watch.raise_error()
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise TrainingError(
                f"training on {n_workers} workers failed: {said[-1]}",
                hint=f"read {folder / 'events.jsonl'} and Ray's logs, then run the same command with --resume",
            ) from error
    watch.raise_error()
    return Run.load(folder / "run.json")


def run_beside(work: Callable[[], Any], look: Callable[[], None]) -> None:
    """Do `work`, and raise what it raises; `look` is called twice a second meanwhile, and once afterwards.

    The work has a thread of its own, since Ray would handle Ctrl-C in the main thread in a way of its own.
    """
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    while not wait([done], LOOK_EVERY_S).done:
        look()
    look()
    done.result()


def shares(ray: Any, n_workers: int) -> dict[str, float]:
    """Return what each of `n_workers` may use: a GPU where there is one for each, and its part of a node's cores."""
    nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, int(min(nodes, default=1) // -(-n_workers // max(1, len(nodes)))))
    on_gpus = ray.cluster_resources().get("GPU", 0) >= n_workers and os.environ.get("SMALLFIRST_DEVICE") != "cpu"
    return {"CPU": cpus, "GPU": 1} if on_gpus else {"CPU": cpus}


def _trainer(ray: Any, folder: Path, n_workers: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    share, place, failures = shares(ray, n_workers), folder.absolute(), FailureConfig(max_failures=MAX_LOST)
    return TorchTrainer(
        _train_worker,
        train_loop_config={"folder": str(place)},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if "GPU" in share else "gloo", timeout_s=WAIT_S),
        scaling_config=ScalingConfig(num_workers=n_workers, use_gpu="GPU" in share, resources_per_worker=share),
        run_config=RunConfig(name="ray", storage_path=str(place / FOLDER), failure_config=failures),
    )


def _train_worker(told: dict[str, str]) -> None:
    do_work(Path(told["folder"]))
