"""Checkpoints: the newest complete one counts, whatever broke while it was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from smallfirst.training.checkpoint import CheckpointStore


def saved(value: float, n: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"w": torch.full((n,), value)}, {"step": value, "curve": [[1, 0.1 + 0.2]]}


def test_what_was_written_comes_back_to_the_bit(tmp_path: Path) -> None:
    kept = {"w": torch.randn(5), "n": torch.tensor(7.0), "generator": torch.get_rng_state()}
    CheckpointStore(tmp_path).write(3, kept, {"loss": 0.1 + 0.2})
    found = CheckpointStore(tmp_path).latest()
    assert found is not None
    assert found.figures == {"loss": 0.1 + 0.2}
    assert found.names() == set(kept)
    read = {name: torch.zeros_like(tensor) for name, tensor in kept.items()}
    found.load_into(read)
    assert all(torch.equal(read[name], kept[name]) for name in kept)


def test_the_newest_counts_and_the_one_before_is_gone(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path)
    for step in (9, 10):
        checkpoints.write(step, *saved(step))
    found = checkpoints.latest()
    assert found is not None
    assert found.figures["step"] == 10
    assert os.listdir(tmp_path) == ["step-10"]


def test_one_that_was_never_finished_does_not_count(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.write(1, *saved(1))
    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-2" / "state.safetensors").write_bytes(b"half")
    found = checkpoints.latest()
    assert found is not None
    assert found.figures["step"] == 1
    checkpoints.write(2, *saved(2))  # its remains are no obstacle
    assert os.listdir(tmp_path) == ["step-2"]


def test_a_full_disk_is_told_and_the_one_before_stays(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.write(1, *saved(1))
    with full_disk(10_000), pytest.raises(OSError, match=r"(?i)too large"):
        checkpoints.write(2, *saved(2, 1_000_000))
    found = checkpoints.latest()
    assert found is not None
    assert found.figures["step"] == 1
    assert os.listdir(tmp_path) == ["step-1"]


def test_none_is_due_at_once_and_one_always_is_without_a_pause(tmp_path: Path) -> None:
    assert not CheckpointStore(tmp_path, least_s=60).due
    always = CheckpointStore(tmp_path, least_s=0)
    assert always.due
    took = always.write(1, *saved(1))
    assert took > 0
    assert not always.due  # not before writing is at most 3 % of the time


def test_a_finished_run_leaves_none(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path / "checkpoint")
    checkpoints.write(1, *saved(1))
    checkpoints.clear()
    assert checkpoints.latest() is None
    assert not (tmp_path / "checkpoint").exists()
