"""Fine-tunes with other settings side by side on a Ray cluster, by Ray Tune; ASHA ends those that fall behind early.

ASHA (Li et al. 2020): after 1, 2, 4, … epochs a trial goes on only if it is among the better half of those that came as
far. Scores are those on selection rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.cluster.ray_session import ray_session
from smallfirst.errors import TrainingError
from smallfirst.registry.runs import open_run, resume_run
from smallfirst.training.config import TrainConfig, parse_duration
from smallfirst.training.distributed.ray_train import run_beside, shares
from smallfirst.training.distributed.work import FOLDER, Work, read_work
from smallfirst.training.events import EventLog
from smallfirst.training.run import train

SPREAD = 3.0
"""Learning rates are drawn from the task's own over this to times this, evenly by their logarithm."""
LONGEST = 2
"""Most epochs of a trial, over the task's own."""
RANKS = (8, 16, 32, 64)


class Trial(NamedTuple):
    """A fine-tune of a sweep."""

    settings: dict[str, Any]
    """The fields of TrainConfig that were drawn."""
    score: float
    """The best on selection rows."""
    epochs: int
    """So many were trained."""
    ended: str
    """`completed`, `stopped early` or the error; empty while it is under way."""


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

    The first one has the task's own settings. Raise TrainingError if none came to its first epoch.
    """
    work, _ = read_work(folder)
    drawn, told = space(work.config), 0

    def look() -> None:
        nonlocal told
        ended = [trial for trial in _trials(folder, drawn) if trial.ended]
        for trial in ended[told:]:
            log(f"trial {_in_words(trial.settings)}: {trial.score:.3f} after {trial.epochs} epochs")
        told = len(ended)

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # or Tune prints tables of its own
    with ray_session(num_cpus=max(n_workers, os.cpu_count() or 1)) as ray:
        found = run_beside(_tuner(ray, folder, work, drawn, n_trials, n_workers, seed).fit, look)
    _close_runs(folder)
    trials = [trial for trial in _trials(folder, drawn) if trial.epochs]
    if not trials:
        raise TrainingError(
            f"no trial came to its first epoch: {next(iter(getattr(found, 'errors', [])), 'no reason')}"
        )
    return sorted(trials, key=lambda trial: -trial.score)


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
        place = folder / "trials" / name
        train(recipe, config, base=(work.base, work.weights), tracked=tracked, folder=place, on_epoch=on_epoch)


def _trials(folder: Path, drawn: Iterable[str]) -> list[Trial]:
    """Return the trials that have begun, by what they wrote."""
    found = []
    for path in sorted((folder / "trials").glob("*/events.jsonl")):
        if not (events := EventLog(path).read()):
            continue
        scores = [next(iter(event.values.values()), 0.0) for event in events if event.kind == "EPOCH_FINISHED"]
        last, config = events[-1], events[0].values["config"]
        ended = {"COMPLETED": "completed", "FAILED": last.message, "STOPPED": last.message}.get(last.kind, "")
        found.append(Trial({name: config.get(name) for name in drawn}, max(scores, default=0.0), len(scores), ended))
    return found


def _close_runs(folder: Path) -> None:
    """End the MLflow runs of trials that were stopped, and say so in their events."""
    for place in (folder / "trials").glob("*"):
        log = EventLog(place / "events.jsonl")
        created = next((event for event in log.read() if event.kind == "CREATED"), None)
        if created and log.status() not in ("COMPLETED", "FAILED"):
            log.append("STOPPED", "stopped early")
            resume_run(created.values["run_id"]).finish("KILLED")


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {v:.2g}" if isinstance(v, float) else f"{n} {v}" for n, v in settings.items())
