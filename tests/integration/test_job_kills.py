"""A job that is killed, stopped and resumed ends with the weights of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.jobs import Eventually, process_id

from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import JobFolder, JobSpec
from smallfirst.registry import versions
from smallfirst.registry.runs import client

pytestmark = pytest.mark.usefixtures("jobs_home", "warm_jobs")

SUBMIT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import JobSpec
queue.submit(JobSpec.load(Path(sys.argv[1])))
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(job: JobFolder, eventually: Eventually) -> None:
    """The process that carries the job out is killed; somebody looks, and another one does."""
    os.kill(process_id(job), signal.SIGKILL)
    eventually(lambda: not job.alive)
    assert queue.find(job.name).alive


def happened(job: JobFolder, kind: str) -> int:
    """How often, in training."""
    return sum(event.kind == kind for event in job.training_log.read())


def weights(job: JobFolder) -> bytes:
    return (job.run_folder / "model" / "model.safetensors").read_bytes()


def test_a_job_killed_stopped_and_resumed_ends_with_the_weights_of_an_unbroken_one(
    spec: JobSpec, eventually: Eventually, tmp_path: Path
) -> None:
    config = spec.config.model_copy(update={"duration": "300ba", "batch_tokens": 64})
    spec = spec.model_copy(update={"config": config, "checkpoint_every_s": 0.0, "eval_rows": spec.train_rows})
    spec.model_copy(update={"name": "broken"}).save(tmp_path / "spec.json")
    submitter = subprocess.run([sys.executable, "-c", SUBMIT_AND_DIE, str(tmp_path / "spec.json")], check=False)
    assert submitter.returncode == -signal.SIGKILL
    broken = queue.find("broken")
    draw = random.Random(0)
    eventually(lambda: broken.state == "STARTING")
    time.sleep(draw.uniform(0, 1))
    killed(broken, eventually)  # as it imports, or just after
    eventually(lambda: happened(broken, "CHECKPOINT_SAVED"))
    time.sleep(draw.uniform(0, 0.3))
    killed(broken, eventually)  # as it trains
    eventually(lambda: happened(broken, "RESUMED"))
    assert queue.cancel(broken)
    eventually(lambda: broken.ended)
    assert broken.state == "STOPPED"
    assert queue.resume(broken, by="somebody")
    whole = queue.submit(spec.model_copy(update={"name": "whole"}))
    eventually(lambda: broken.ended and whole.ended)

    assert (broken.state, whole.state) == ("COMPLETED", "COMPLETED"), broken.output_tail
    assert weights(broken) == weights(whole)
    assert happened(whole, "RESUMED") == 0
    registered = versions.list_versions("main.toys.desk")
    assert sorted(version.tags["job"] for version in registered) == ["broken", "whole"]
    (experiment,) = client().search_experiments(filter_string="name = 'toys'")
    runs = client().search_runs([experiment.experiment_id])
    stati = sorted(run.info.status for run in runs if run.data.tags["job"] == "broken")
    assert stati.count("FINISHED") == 1
    assert set(stati) <= {"FINISHED", "KILLED"}
