"""What goes on beside Ray; a training on a real cluster, with a worker killed, is benchmarks/training/workers.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from smallfirst.training.distributed.ray_train import run_beside, shares


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
