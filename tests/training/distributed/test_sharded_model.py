"""A sharded model has the weights of the whole one; its gradient is in tests/training/test_causal_lm_gradients.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.warm_processes import WarmProcess

from smallfirst.errors import ConfigError
from smallfirst.training.distributed.sharded_model import ShardedModel

PROCESS = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from smallfirst.models.local.weights import load_causal
from smallfirst.training.distributed.sharded_model import ShardedModel
folder, meeting, rank, out = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
model, _ = load_causal(Path(folder))
ids = torch.tensor([[5, 6, 7, 8]])
expected = model(input_ids=ids).logits
sharded = ShardedModel(model, 2)
held = sum(p.to_local().numel() for p in sharded.parameters())
with sharded.whole(keep=rank == "0") as whole:
    n_whole = sum(p.numel() for p in whole.parameters() if p.device.type != "meta")
    if rank == "0":
        assert torch.equal(whole(input_ids=ids).logits, expected)
        whole.save_pretrained(out)
assert all(p.device.type == "meta" for p in whole.parameters())
Path(out + rank).write_text(f"{held} {n_whole}")
"""


def test_each_process_holds_a_part_and_the_first_one_gets_the_whole(
    tiny_folder: Path, tiny_fp32: tuple[Any, Any], tmp_path: Path, warm_parent: None
) -> None:
    command = [sys.executable, "-c", PROCESS, str(tiny_folder), str(tmp_path / "meeting")]
    processes = [WarmProcess([*command, rank, str(tmp_path / "out")]) for rank in "01"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    n = sum(p.numel() for p in tiny_fp32[0].parameters())
    (held, whole), (other, nothing) = ([int(x) for x in (tmp_path / f"out{r}").read_text().split()] for r in "01")
    assert held + other == n
    assert max(held, other) < 0.6 * n
    assert (whole, nothing) == (n, 0)
    saved, expected = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "out", tiny_folder))
    assert saved == expected


def test_weights_of_two_types_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16())
    with pytest.raises(ConfigError, match="weights of 2 types cannot be sharded"):
        ShardedModel(model, 1)
