"""What is varied, and what trials tell by their files; no sweep on a cluster is run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.registry.runs import client, open_run
from smallfirst.training.config import TrainConfig
from smallfirst.training.distributed import ray_tune
from smallfirst.training.events import EventLog


def test_rates_lie_around_the_task_s_own_and_adapters_have_ranks() -> None:
    found = ray_tune.space(TrainConfig(learning_rate=3e-4, duration="4ep"))
    assert found == {"learning_rate": (pytest.approx(1e-4), pytest.approx(9e-4)), "duration": ["4ep", "8ep"]}
    assert ray_tune.space(TrainConfig(method="lora", lora_rank=12))["lora_rank"] == [8, 12, 16, 32, 64]


@pytest.mark.usefixtures("module_home")
def test_trials_are_read_from_their_events_and_a_stopped_one_is_closed(tmp_path: Path) -> None:
    for name, last in (("done", "COMPLETED"), ("poor", "EPOCH_FINISHED"), ("wrong", "FAILED")):
        with open_run("toy", name) as tracked:
            pass
        log = EventLog(tmp_path / "trials" / name / "events.jsonl")
        log.append("CREATED", "", run_id=tracked.run_id, config={"learning_rate": 0.1, "duration": "2ep", "seed": 0})
        for score in (0.5, 0.25):
            log.append("EPOCH_FINISHED", "", validation_score=score)
        if last != "EPOCH_FINISHED":
            log.append(last, "too few rows")  # type: ignore[arg-type]
    ray_tune._close_runs(tmp_path)
    ends = {trial.ended for trial in ray_tune._trials(tmp_path, ("learning_rate", "duration"))}
    assert ends == {"completed", "stopped early", "too few rows"}
    best = ray_tune._trials(tmp_path, ("learning_rate", "duration"))[0]
    assert best == ({"learning_rate": 0.1, "duration": "2ep"}, 0.5, 2, "completed")
    poor = EventLog(tmp_path / "trials" / "poor" / "events.jsonl").read()[0].values["run_id"]
    assert client().get_run(poor).info.status == "KILLED"
