"""Train on a Ray cluster: one fine-tune on several workers, by Ray Train, or several side by side, by Ray Tune.

A worker that is lost is replaced, and the run goes on. A sweep compares other settings on selection rows, and ASHA
(Li et al. 2020) ends those that fall behind: after 1, 2, 4, … epochs a trial goes on only if it is among the better
half of those that came as far.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from smallfirst.cluster.ray_session import ray_session
from smallfirst.errors import TrainingError
from smallfirst.registry.runs import open_run, resume_run
from smallfirst.training.config import TrainConfig, parse_duration
from smallfirst.training.distributed.work import FOLDER, WAIT_S, Watch, Work, do_work_and_tell, read_work
from smallfirst.training.events import EventLog
from smallfirst.training.run import EpochCallback, Run, StepCallback, train

MAX_LOST = 5
"""How often workers may be lost before a run fails; each time it goes on from its last checkpoint."""
LOOK_EVERY_S = 0.5
SPREAD = 3.0
"""Learning rates are drawn from the task's own over this to times this, evenly by their logarithm."""
LONGEST = 2
"""Most epochs of a trial, over the task's own."""
RANKS = (8, 16, 32, 64)
COMPLETED = "completed"
TRIALS = "trials"
"""Folder of the trials' run folders in that of a sweep."""


class Trial(NamedTuple):
    """A fine-tune of a sweep."""

    name: str
    """Of its folder."""
    settings: dict[str, Any]
    """The fields of TrainConfig that were drawn."""
    score: float
    """The best on selection rows."""
    epochs: int
    """So many were trained."""
    ended: str
    """`completed`, `stopped early` or the error; empty while it is under way."""


def train_on_ray(
    folder: Path,
    n_workers: int,
    *,
    on_step: StepCallback,
    on_epoch: EpochCallback,
    log: Callable[[str], None],
) -> Run:
    """Carry out the work in a run's folder (`write_work`) on `n_workers` workers, each with a GPU where there are any.

    Raise what the workers raise, ConfigError without a usable cluster, TrainingError if workers are lost too often.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    watch = Watch(folder, on_step, on_epoch, log)
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


def run_beside(work: Callable[[], Any], look: Callable[[], None]) -> Any:
    """Return what `work` returns; `look` is called twice a second meanwhile, and once afterwards.

    The work has a thread of its own, since Ray would handle Ctrl-C in the main thread in a way of its own.
    """
    done: Future[Any] = Future()
    Thread(target=_fulfil, args=(done, work), daemon=True).start()
    while not wait([done], timeout=LOOK_EVERY_S).done:
        look()
    look()
    return done.result()


def shares(ray: Any, n_workers: int) -> dict[str, float]:
    """Return what each of `n_workers` may use: a GPU where there is one for each, and its part of a node's cores."""
    nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, int(min(nodes, default=1) // -(-n_workers // max(1, len(nodes)))))
    on_gpus = ray.cluster_resources().get("GPU", 0) >= n_workers and os.environ.get("SMALLFIRST_DEVICE") != "cpu"
    return {"CPU": cpus, "GPU": 1} if on_gpus else {"CPU": cpus}


def _trainer(ray: Any, folder: Path, n_workers: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    share = shares(ray, n_workers)
    place = folder.absolute()
    return TorchTrainer(
        _train_worker,
        train_loop_config={"folder": str(place)},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if "GPU" in share else "gloo", timeout_s=WAIT_S),
        scaling_config=ScalingConfig(num_workers=n_workers, use_gpu="GPU" in share, resources_per_worker=share),
        run_config=RunConfig(
            name="ray", storage_path=str(place / FOLDER), failure_config=FailureConfig(max_failures=MAX_LOST)
        ),
    )


def _train_worker(told: dict[str, str]) -> None:
    do_work_and_tell(Path(told["folder"]))


def _fulfil(done: Future[Any], work: Callable[[], Any]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)


def space(config: TrainConfig) -> dict[str, Sequence[Any] | tuple[float, float]]:
    """Return what is varied: a range of learning rates, and choices of all else."""
    rate, duration = config.learning_rate, parse_duration(config.duration)
    found: dict[str, Any] = {"learning_rate": (rate / SPREAD, min(0.5, rate * SPREAD))}
    found["duration"] = [f"{times * duration.amount}{duration.unit}" for times in range(1, LONGEST + 1)]
    if config.method != "full":
        found["lora_rank"] = sorted({*RANKS, config.lora_rank})
    return found


def sweep_on_ray(folder: Path, n_trials: int, n_workers: int, *, seed: int, log: Callable[[str], None]) -> list[Trial]:
    """Run trials of the work in `folder` (`write_work`), `n_workers` at once, and return them, the best first.

    The first one has the task's own settings. The model of the best one is kept if it was trained to its end, those of
    the others are not. Raise TrainingError if none came to its first epoch.
    """
    work, _ = read_work(folder)
    drawn, told = space(work.config), set[str]()

    def look() -> None:
        for trial in _trials(folder, drawn):
            if trial.ended and trial.name not in told:
                log(f"trial {_in_words(trial.settings)}: {trial.score:.3f} after {trial.epochs} epochs")
                told.add(trial.name)

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # or Tune prints tables of its own
    with ray_session(num_cpus=max(n_workers, os.cpu_count() or 1)) as ray:
        found = run_beside(_tuner(ray, folder, work, drawn, n_trials, n_workers, seed).fit, look)
    _close_runs(folder)
    trials = [trial for trial in _trials(folder, drawn) if trial.epochs]
    if not trials:
        raise TrainingError(
            f"no trial came to its first epoch: {next(iter(getattr(found, 'errors', [])), 'no reason')}"
        )
    trials.sort(key=lambda trial: (-trial.score, trial.ended != COMPLETED))
    for trial in trials[trials[0].ended == COMPLETED :]:
        place = folder / TRIALS / trial.name
        (place / "run.json").unlink(missing_ok=True)
        shutil.rmtree(place / "model", ignore_errors=True)
        shutil.rmtree(place / "checkpoint", ignore_errors=True)
    return trials


def _tuner(
    ray: Any, folder: Path, work: Work, drawn: Mapping[str, Any], n_trials: int, n_workers: int, seed: int
) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    first = {name: getattr(work.config, name) for name in drawn}
    params: dict[str, Any] = {
        name: tune.loguniform(*value) if isinstance(value, tuple) else tune.choice(list(value))
        for name, value in drawn.items()
    }
    longest = max(parse_duration(text).amount for text in drawn["duration"])
    return tune.Tuner(
        tune.with_resources(_run_trial, shares(ray, n_workers)),
        param_space={"folder": str(folder.absolute()), **params},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=n_trials,
            max_concurrent_trials=n_workers,
            reuse_actors=True,  # a process that has imported PyTorch
            search_alg=BasicVariantGenerator(points_to_evaluate=[first], random_state=seed),
            scheduler=ASHAScheduler(time_attr="epoch", grace_period=1, reduction_factor=2, max_t=longest + 1),
        ),
        run_config=tune.RunConfig(name="ray", storage_path=str(folder.absolute() / FOLDER), verbose=0),
    )


def _run_trial(told: dict[str, Any]) -> None:
    from ray import tune

    folder = Path(told.pop("folder"))
    work, recipe = read_work(folder)
    os.environ["SMALLFIRST_HOME"] = str(work.state)
    config = TrainConfig.model_validate({**work.config.model_dump(), **told})
    params = {f"train.{name}": value for name, value in config.model_dump().items()}
    name = tune.get_context().get_trial_id()

    def on_epoch(epoch: int, score: float) -> bool:
        tune.report({"score": score, "epoch": epoch})
        return False

    tags = {"mlflow.parentRunId": work.run_id}
    with open_run(work.task.name, f"{folder.name}-{name}", params=params, tags=tags) as tracked:
        place = folder / TRIALS / name
        train(recipe, config, base=(work.base, work.weights), tracked=tracked, folder=place, on_epoch=on_epoch)


def _trials(folder: Path, drawn: Iterable[str]) -> list[Trial]:
    """Return the trials that have begun, by what they wrote."""
    found = []
    for path in sorted((folder / TRIALS).glob("*/events.jsonl")):
        if not (events := EventLog(path).read()):
            continue
        scores = [next(iter(event.values.values()), 0.0) for event in events if event.kind == "EPOCH_FINISHED"]
        last, config = events[-1], events[0].values["config"]
        ended = {"COMPLETED": COMPLETED, "FAILED": last.message, "STOPPED": last.message}.get(last.kind, "")
        settings = {name: config.get(name) for name in drawn}
        found.append(Trial(path.parent.name, settings, max(scores, default=0.0), len(scores), ended))
    return found


def _close_runs(folder: Path) -> None:
    """End the MLflow runs of trials that were stopped, and say so in their events."""
    for place in (folder / TRIALS).glob("*"):
        log = EventLog(place / "events.jsonl")
        created = next((event for event in log.read() if event.kind == "CREATED"), None)
        if created and log.status() not in ("COMPLETED", "FAILED"):
            log.append("STOPPED", "stopped early")
            resume_run(created.values["run_id"]).finish("KILLED")


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {v:.2g}" if isinstance(v, float) else f"{n} {v}" for n, v in settings.items())
