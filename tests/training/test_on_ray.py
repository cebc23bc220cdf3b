"""Several processes train as one, by themselves and on Ray: the same losses, and a killed one is replaced."""

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from fixtures.ray_cluster import RayCluster
from fixtures.training import Bench, event_kinds
from fixtures.warm_processes import WarmProcess

from smallfirst.base.errors import Cancelled, DataError
from smallfirst.registry.runs import open_run
from smallfirst.training.config import TrainConfig
from smallfirst.training.loop import StepMetrics
from smallfirst.training.on_ray import FOLDER, RunWatch, do_work, shares, train_on_ray, write_work
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import CANCEL_FILE, STOP_FILE, Run

pytestmark = pytest.mark.usefixtures("module_home")

CONFIG = TrainConfig(duration="3ep", learning_rate=5e-3, batch_tokens=96, max_seq_tokens=64)
PROCESS = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from smallfirst.training.on_ray import do_work
folder, meeting, rank, size, kill_at = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(size))
def on_step(step):
    if str(step.step) == kill_at:
        os._exit(9)
do_work(Path(folder), on_step=on_step)
"""


@pytest.fixture(scope="module")
def alone(bench: Bench, tmp_path_factory: pytest.TempPathFactory, module_home: None) -> Run:
    folder = prepared(bench, tmp_path_factory.mktemp("alone"))
    do_work(folder)
    return Run.load(folder / "run.json")


def prepared(bench: Bench, folder: Path, *, every_s: float = 0, **more: Any) -> Path:
    recipe = TaskRecipe(bench.task, more.get("rows", bench.rows), bench.selection)
    run_id = open_run("toy", folder.name).run_id
    write_work(folder, recipe, more.get("config", CONFIG), ("toys/tiny", bench.base), run_id, save_every_s=every_s)
    return folder


def run_in(folder: Path, size: int, *, kill_at: str = "") -> list[int]:
    """Exit codes of `size` processes that do the work."""
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    command = [sys.executable, "-c", PROCESS, str(folder), str(meeting)]
    processes = [WarmProcess([*command, str(rank), str(size), kill_at]) for rank in range(size)]
    return [process.wait(timeout=120) for process in processes]


def assert_like(run: Run, alone: Run) -> None:
    """In bfloat16 other sums of the same numbers differ in the third digit."""
    assert [step for step, _ in run.loss_curve] == [step for step, _ in alone.loss_curve]
    for (_, loss), (_, expected) in zip(run.loss_curve, alone.loss_curve, strict=True):
        assert loss == pytest.approx(expected, rel=0.03)
    assert len(run.validation_curve) == 3


def test_two_processes_go_the_way_of_one_and_a_killed_run_goes_on_with_another_number(
    bench: Bench, alone: Run, tmp_path: Path, warm_parent: None
) -> None:
    folder = prepared(bench, tmp_path)
    assert 0 not in run_in(folder, 2, kill_at="4")  # with the first process the others end as well
    assert run_in(folder, 1) == [0]
    run = Run.load(folder / "run.json")
    assert_like(run, alone)
    assert event_kinds(folder).count("RESUMED") == 1
    assert event_kinds(folder).count("EPOCH_FINISHED") >= 3
    assert (run.folder / "model.safetensors").is_file()
    assert json.loads((folder / FOLDER / "progress.json").read_text())["progress"] == 1


def test_what_the_first_process_writes_is_relayed_and_on_epoch_ends_the_run(bench: Bench, tmp_path: Path) -> None:
    folder = prepared(bench, tmp_path)
    steps: list[StepMetrics] = []
    epochs: list[int] = []
    watch = RunWatch(folder, steps.append, lambda epoch, score: bool(epochs.append(epoch)) or epoch == 2, print)
    watch.look()  # nothing is there yet
    do_work(folder, on_step=lambda _: watch.look())
    watch.raise_error()
    assert epochs == [1, 2]
    assert (folder / STOP_FILE).is_file()
    run = Run.load(folder / "run.json")
    assert len(run.validation_curve) == 2
    assert [step.step for step in steps if step.ends_epoch][-1] in [step for step, _ in run.loss_curve]


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_error_of_a_process_reaches_the_user_and_is_not_tried_again(
    bench: Bench, tmp_path: Path, warm_parent: None, cancelled: bool
) -> None:
    bad = bench.rows.examples[0].model_copy(update={"answer": "nonsense"})
    folder = prepared(bench, tmp_path, rows=bench.rows if cancelled else bench.rows.subset("bad", (bad,)))
    if cancelled:
        (folder / CANCEL_FILE).touch()
    assert 0 not in run_in(folder, 2)
    said = "cancelled at step 1 of" if cancelled else "1 of 1 rows cannot be trained on"
    with pytest.raises(Cancelled if cancelled else DataError, match=said):
        RunWatch(folder, print, lambda *_: False, print).raise_error()
    kinds = event_kinds(folder)
    assert kinds[-1] == ("STOPPED" if cancelled else "FAILED")
    do_work(folder)
    assert event_kinds(folder) == kinds


def test_two_workers_go_on_from_the_checkpoint_when_one_is_killed(
    ray_cluster: RayCluster, bench: Bench, tmp_path: Path
) -> None:
    prepared(bench, tmp_path, config=CONFIG.model_copy(update={"duration": "100_000ba"}))  # until both have happened
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


@pytest.mark.parametrize(
    ("nodes", "gpus", "n_workers", "share"),
    [([8], 0, 2, {"CPU": 4}), ([8, 4], 0, 4, {"CPU": 2}), ([8, 8], 2, 2, {"CPU": 8, "GPU": 1})],
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
