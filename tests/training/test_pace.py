"""The pace of a fine-tune: that of the latest run alike, else of its own first steps, which leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smallfirst.training import pace
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.config import TrainConfig
from smallfirst.training.pace import last_tokens_per_s, training_pace

ROWS = [TokenizedRow((0, 5, 9, i, 300), 4) for i in range(10, 90)]


def finished(tasks: Path, name: str, **changes: Any) -> None:
    run = {"base": "tiny", "config": {"method": "full"}, "tokens_per_s": 100.0} | changes
    (tasks / "desk" / name).mkdir(parents=True)
    (tasks / "desk" / name / "run.json").write_text(json.dumps(run))


def test_the_latest_run_that_is_alike_gives_the_pace(tmp_path: Path) -> None:
    config = TrainConfig()
    assert last_tokens_per_s(tmp_path, "tiny", config) is None
    finished(tmp_path, "1", tokens_per_s=100.0)
    finished(tmp_path, "2", tokens_per_s=200.0)
    finished(tmp_path, "3", base="another", tokens_per_s=300.0)
    finished(tmp_path, "4", config={"method": "lora"}, tokens_per_s=400.0)
    (tmp_path / "desk" / "6").mkdir()
    (tmp_path / "desk" / "6" / "run.json").write_text("{")
    finished(tmp_path, "7", config=None)
    assert last_tokens_per_s(tmp_path, "tiny", config) == 200
    assert last_tokens_per_s(tmp_path, "tiny", TrainConfig(method="lora")) == 400
    found = training_pace(tmp_path, ("tiny", tmp_path), config, ROWS)
    assert found == (200, "an earlier run read 200 tokens/s")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_else_its_first_steps_are_taken_once(
    method: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MEASURED_S", 0.01)
    before = (tiny_folder / "model.safetensors").read_bytes()
    config = TrainConfig(method=method, batch_tokens=32)
    found = training_pace(tmp_path, ("tiny", tiny_folder), config, ROWS)
    assert found.tokens_per_s > 0
    assert found.words == f"its first steps read {found.tokens_per_s:,.0f} tokens/s"
    assert training_pace(tmp_path, ("tiny", tiny_folder), config, ROWS) == found  # not measured again
    assert (tiny_folder / "model.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == []
