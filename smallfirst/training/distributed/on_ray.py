"""One fine-tune on several workers of a Ray cluster, by Ray Train. A lost worker is replaced, and the run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any

from smallfirst.cluster.ray_session import ray_session
from smallfirst.errors import TrainingError
from smallfirst.training.distributed.work import FOLDER, WAIT_S, Watch, do_work_and_tell
from smallfirst.training.run import EpochCallback, Run, StepCallback

MAX_LOST = 5
"""How often workers may be lost before a run fails; each time it goes on from its last checkpoint."""
LOOK_EVERY_S = 0.5


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
