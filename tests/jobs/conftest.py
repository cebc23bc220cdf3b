"""A state folder with a queue of its own, orders to fine-tune the tiny model, and a wait that ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from smallfirst.jobs import queue
from smallfirst.jobs.folder import JobFolder
from smallfirst.jobs.order import Order
from smallfirst.training.config import TrainConfig

PATIENCE_S = 240
"""A busy machine takes long to import PyTorch; nothing waits so long otherwise."""


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Gives what a function gives once that is something. Fails after PATIENCE_S."""

    def wait(ask: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while not (found := ask()):
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.05)
        return found

    return wait


@pytest.fixture(scope="module")
def jobs_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder for the module; jobs of other test files do not take its turn."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(home))
        patch.setenv("TMPDIR", str(home))
        yield home
        for job in queue.all_jobs():  # a test that failed may have left one behind
            queue.cancel(job)


@pytest.fixture
def order(tiny_folder: Path, tmp_path: Path) -> Order:
    """64 prompts with their responses."""
    rows = [
        {"prompt": f"where is my {what}", "response": "on its way"} for what in ("card", "pin", "euro", "refund") * 16
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Order(
        name="tiny-1",
        lesson="chat",
        model=str(tiny_folder),
        train_rows=str(tmp_path / "rows.jsonl"),
        register_to="main.toys.desk",
        experiment="toys",
        config=TrainConfig(duration="2ep", learning_rate=1e-2, batch_tokens=512, max_seq_tokens=128),
        created_by="somebody",
        created_at=datetime(2026, 11, 30, 12, tzinfo=UTC),
    )


@pytest.fixture
def laid_down() -> Callable[[Order], JobFolder]:
    """Makes the folder of a job that no process carries out."""

    def make(order: Order) -> JobFolder:
        job = JobFolder(queue.jobs_folder() / order.name)
        job.folder.mkdir()
        job.log.append("CREATED", "")
        order.save(job.folder / "job.json")
        return job

    return make
