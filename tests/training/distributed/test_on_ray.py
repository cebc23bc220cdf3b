"""Training on a cluster of two cores."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from fixtures.ray_cluster import RayCluster
from fixtures.training import Bench, event_kinds

from smallfirst.registry.runs import open_run
from smallfirst.training.config import TrainConfig
from smallfirst.training.distributed.on_ray import run_beside, shares, train_on_ray
from smallfirst.training.distributed.work import write_work
from smallfirst.training.loop import StepMetrics
from smallfirst.training.recipes.recipe import TaskRecipe


def prepare(bench: Bench, folder: Path, duration: str) -> None:
    """Tell workers of a fine-tune of the tiny model that has a checkpoint at every step."""
    config = TrainConfig(duration=duration, learning_rate=5e-3, batch_tokens=96, max_seq_tokens=64)
    recipe = TaskRecipe(bench.task, bench.rows, bench.selection)
    run_id = open_run("toy", folder.name).run_id
    write_work(folder, recipe, config, ("toys/tiny", bench.base), run_id, save_every_s=0)


@pytest.mark.usefixtures("module_home")
def test_two_workers_go_on_from_the_checkpoint_when_one_is_killed(
    ray_cluster: RayCluster, bench: Bench, tmp_path: Path
) -> None:
    prepare(bench, tmp_path, "100_000ba")  # until both have happened, whatever that takes
    killed: list[int] = []
    said: list[str] = []

    def on_step(_: StepMetrics) -> None:
        if killed or not any((tmp_path / "checkpoint").glob("*/state.json")):
            return
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may end meanwhile
                if not killed and " ".join(child.cmdline()).startswith("ray::RayTrainWorker"):
                    child.kill()
                    killed.append(child.pid)

    def on_epoch(*_: object) -> bool:
        return any("resumed" in line for line in said)

    run = train_on_ray(tmp_path, 2, on_step=on_step, on_epoch=on_epoch, log=said.append)
    assert killed
    resumed = [line for line in said if "resumed" in line]
    assert int(resumed[0].split()[3]) >= 1  # resumed: from step N of 100000
    assert event_kinds(tmp_path)[-1] == "COMPLETED"
    assert run.loss_curve[0][0] == 1
    assert all(math.isfinite(loss) for _, loss in run.loss_curve)
    assert (run.folder / "model.safetensors").is_file()


def test_work_is_looked_at_and_its_result_or_error_returned() -> None:
    looks: list[int] = []
    assert run_beside(lambda: 7, lambda: looks.append(1)) == 7
    assert looks

    def fail() -> None:
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        run_beside(fail, lambda: None)


@pytest.mark.parametrize(
    ("nodes", "gpus", "n_workers", "share"),
    [
        ([8], 0, 2, {"CPU": 4}),
        ([2], 0, 4, {"CPU": 1}),
        ([8, 4], 0, 4, {"CPU": 2}),
        ([8, 8], 2, 2, {"CPU": 8, "GPU": 1}),
        ([8], 1, 2, {"CPU": 4}),
    ],
)
def test_each_worker_gets_its_part_of_a_node(
    nodes: list[int], gpus: int, n_workers: int, share: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMALLFIRST_DEVICE", raising=False)
    ray: Any = SimpleNamespace(
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in nodes],
        cluster_resources=lambda: {"CPU": sum(nodes), "GPU": gpus},
    )
    assert shares(ray, n_workers) == share
