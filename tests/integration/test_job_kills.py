"""A job that is killed, stopped and resumed ends with the weights of an uninterrupted one, and keeps nobody waiting."""

import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from fixtures.expenses import spent_once
from fixtures.jobs import Eventually, event_kinds, process_id

from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import JobFolder, JobSpec
from smallfirst.interfaces.jobs.worker import register_model
from smallfirst.registry import versions
from smallfirst.registry.runs import client
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("jobs_home", "warm_jobs")

SUBMIT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import JobSpec
queue.submit(JobSpec.load(Path(sys.argv[1])))
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill(job: JobFolder, eventually: Eventually) -> None:
    os.kill(process_id(job), signal.SIGKILL)
    eventually(lambda: not job.alive)


def mlflow_status(job: JobFolder) -> str:
    return str(client().get_run(job.tracking.run_id).info.status)


def happened(job: JobFolder, kind: str) -> int:
    """How often, in training."""
    return sum(event.kind == kind for event in job.training_log.read())


def weights(job: JobFolder) -> bytes:
    return (job.run_folder / "model" / "model.safetensors").read_bytes()


def test_a_job_killed_stopped_and_resumed_ends_with_the_weights_of_an_unbroken_one(
    spec: JobSpec, eventually: Eventually, tmp_path: Path
) -> None:
    config = spec.config.model_copy(update={"duration": "200ba", "batch_tokens": 64})  # a row a step
    prompts = ("where is my card",)
    more = {"config": config, "checkpoint_every_s": 0.0, "eval_rows": spec.train_rows, "eval_prompts": prompts}
    first, *later = (
        spec.model_copy(update={**more, "name": name, "created_at": spec.created_at + timedelta(seconds=i)})
        for i, name in enumerate(("broken", "whole", "unwanted"))
    )
    first.save(tmp_path / "spec.json")
    submitter = subprocess.run([sys.executable, "-c", SUBMIT_AND_DIE, str(tmp_path / "spec.json")], check=False)
    assert submitter.returncode == -signal.SIGKILL
    broken = queue.find("broken")
    eventually(lambda: broken.state == "STARTING")
    time.sleep(random.Random(0).uniform(0, 1))
    kill(broken, eventually)  # as it imports, or just after
    assert queue.find("broken").alive  # looking restarts it

    eventually(lambda: broken.state in ("STARTING", "RUNNING"))
    whole, unwanted = map(queue.submit, later)
    eventually(lambda: whole.state == unwanted.state == "QUEUED")
    assert queue.cancel(unwanted)
    eventually(lambda: unwanted.state == "STOPPED")
    assert [k for k in event_kinds(unwanted) if k != "ESTIMATED"] == ["CREATED", "QUEUED", "STOPPED"]
    eventually(lambda: happened(broken, "CHECKPOINT_SAVED"))
    kill(broken, eventually)  # as it trains
    assert broken.state == "RUNNING"  # it could not record its end
    eventually(lambda: whole.state == "RUNNING")  # the queue goes on without it
    assert queue.find("broken").alive
    assert event_kinds(broken)[-1] in ("REQUEUED", "QUEUED")

    eventually(lambda: whole.ended and broken.state == "RUNNING")
    assert queue.cancel(broken)
    eventually(lambda: broken.ended)
    assert (broken.state, mlflow_status(broken)) == ("STOPPED", "KILLED")
    assert broken.events[-1].message.startswith("cancelled at step")
    assert queue.resume(broken, by="somebody")
    eventually(lambda: broken.ended)
    assert (broken.state, whole.state) == ("COMPLETED", "COMPLETED"), broken.output_tail
    assert weights(broken) == weights(whole)
    assert (happened(whole, "RESUMED"), happened(broken, "RESUMED") > 0) == (0, True)
    assert queue.cancel(broken) is False
    assert broken.progress.share == 1.0

    registered = versions.list_versions("main.toys.desk")
    assert [version.tags["job"] for version in registered] == ["whole", "broken"]
    assert (registered[1].tags["created_by"], "verdict" in registered[1].tags) == ("somebody", False)
    assert registered[1].aliases == ()  # nothing goes live by itself
    assert broken.result.reference == "main.toys.desk/2"
    # Had it been killed between registering and saying so, it would find its version again.
    assert register_model(broken, Run.load(broken.run_folder / "run.json")) == broken.result
    assert len(versions.list_versions("main.toys.desk")) == 2
    assert spent_once(broken.folder, "main.toys.desk")["training"] > 0
    assert (mlflow_status(broken), registered[1].run_id) == ("FINISHED", broken.tracking.run_id)
    assert max(point.step for point in client().get_metric_history(broken.tracking.run_id, "loss")) == 200
    artifacts = {file.path for file in client().list_artifacts(broken.tracking.run_id, "eval_prompts")}
    assert "eval_prompts/epoch-001.json" in artifacts
