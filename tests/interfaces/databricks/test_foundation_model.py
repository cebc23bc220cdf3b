"""The seven functions: a model from create() to its answer in real processes, and every way to ask and be refused."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fixtures import warm_processes
from fixtures.jobs import TIMEOUT_S, create_job, job_spec

from smallfirst.interfaces.databricks import foundation_model as fm
from smallfirst.interfaces.databricks.training_run import (
    DatabricksGenAIResponseError,
    DatabricksModelTrainingRequestError,
    RunStatus,
    ValidationError,
)
from smallfirst.jobs import queue
from smallfirst.jobs.job_folder import JobFolder, MlflowIds
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Request
from smallfirst.registry import versions

ROWS = [{"prompt": f"where is my {what}", "response": "on its way"} for what in ("card", "pin", "euro", "refund") * 12]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder for the module; jobs of other test files do not take its turn."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(folder))
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(queue, "FOLLOW_INTERVAL_S", 0.05)
        yield folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def ended_job(name: str, hour: int, by: str = "somebody", end: str = "STOPPED") -> JobFolder:
    return create_job(job_spec(name, created_by=by, created_at=datetime(2020, 1, 2, hour, tzinfo=UTC)), end)


@pytest.fixture
def three(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[JobFolder]:
    """Three jobs that ended, in a state folder of their own, oldest first."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    jobs = [ended_job("one", 1), ended_job("two", 2, by="other"), ended_job("three", 3, end="FAILED")]
    MlflowIds(run_id="abc", experiment_id="7").save(jobs[1].folder / "mlflow.json")
    return jobs


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        (
            "create",
            "model train_data_path register_to experiment_path='' task_type='CHAT_COMPLETION' eval_data_path=None "
            "eval_prompts=None custom_weights_path=None training_duration=None learning_rate=None context_length=None "
            "validate_inputs=True data_prep_cluster_id=None",
        ),
        ("get", "training_run"),
        (
            "list",
            "training_runs=None experiment_id=None statuses=None user_emails=None before=None after=None "
            "include_details=True limit=100",
        ),
        ("cancel", "runs=None experiment_id=None"),
        ("get_events", "training_run follow=False"),
        ("get_checkpoints", "training_run"),
        ("get_models", ""),
    ],
)
def test_arguments_and_defaults_are_those_of_databricks_genai(name: str, signature: str) -> None:
    """As read from the package databricks-genai 1.1.8; what is ours comes after."""
    ours = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in inspect.signature(getattr(fm, name)).parameters.values()
    ]
    theirs = signature.split()
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) :] == (["config=None"] if name == "create" else [])
    assert name in fm.__all__


CREATE_AND_DIE = """
import os, signal, sys
from smallfirst import foundation_model as fm
run = fm.create(
    model=sys.argv[1], train_data_path=sys.argv[2], register_to="main.toys.desk", task_type="INSTRUCTION_FINETUNE",
    eval_data_path=sys.argv[2], eval_prompts=["where is my card"], training_duration="8ep", learning_rate="1e-2",
    context_length=128,
)
print(run.name, run.status.display_name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_outlives_the_process_that_created_it_and_its_model_answers(
    tiny_folder: Path, rows: Path, warm_jobs: None
) -> None:
    command = [sys.executable, "-c", CREATE_AND_DIE, str(tiny_folder), str(rows)]
    parent = warm_processes.run(command, capture_output=True, text=True, check=False)
    assert parent.returncode == -9, parent.stderr
    name, status = parent.stdout.split()
    assert status in ("Pending", "Starting", "Queued")
    rows.unlink()  # what it learns from was read at create()

    run: Any = name
    end = time.monotonic() + TIMEOUT_S
    while True:  # as DSPy waits
        run = fm.get(run)
        if run.status.display_name == "Completed":
            break
        assert run.status.display_name != "Failed", run.details
        assert time.monotonic() < end
        time.sleep(0.1)

    types = [event.type for event in fm.get_events(run, follow=True)]
    assert types[0] == "CREATED"
    assert types[-1] == "COMPLETED"
    marks = [
        "CREATED",
        "STARTED",
        "DATA_VALIDATED",
        "MODEL_INITIALIZED",
        "TRAIN_STARTED",
        "TRAIN_FINISHED",
        "COMPLETED",
    ]
    assert [kind for kind in types if kind in marks] == marks
    assert types.count("TRAIN_UPDATED") == 8 + 10  # each epoch, and each tenth of the run
    assert run.progress == 1.0
    assert (run.register_to, run.model_version) == ("main.toys.desk", 1)

    assert answer(versions.resolve("main.toys.desk/1").folder, "where is my pin") == "on its way"
    (checkpoint,) = fm.get_checkpoints(run.name)
    assert answer(Path(checkpoint), "where is my card") == "on its way"
    again = fm.create(str(tiny_folder), checkpoint_rows(checkpoint), "main.toys", custom_weights_path=checkpoint)
    assert fm.cancel(again) == 1


def checkpoint_rows(checkpoint: str) -> str:
    """A file of rows beside the job, for a second run."""
    path = Path(checkpoint).parents[1] / "again.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}))
    return str(path)


def answer(folder: Path, prompt: str) -> str:
    async def ask() -> str:
        model = load_model(folder)
        found = await model.complete(Request.ask(prompt, max_tokens=20))
        await model.aclose()
        return found.text

    return asyncio.run(ask())


def test_bad_rows_of_both_files_are_told_before_anything_starts(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}')
    (tmp_path / "eval.jsonl").write_text('{"text": "a", "label": "b"}')
    before = len(fm.list(limit=None))
    with pytest.raises(ValidationError) as caught:
        fm.create(
            str(tiny_folder),
            str(tmp_path / "train.jsonl"),
            "main.toys.desk",
            eval_data_path=str(tmp_path / "eval.jsonl"),
        )
    assert str(caught.value).startswith("train_data_path: ")
    assert "\neval_data_path: " in str(caught.value)
    assert "train.jsonl:2" in str(caught.value)
    assert "eval.jsonl:1" in str(caught.value)
    assert len(fm.list(limit=None)) == before


def test_a_volume_without_a_root_is_told(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALLFIRST_VOLUMES", raising=False)
    monkeypatch.setitem(sys.modules, "databricks.sdk", None)  # no workspace either
    with pytest.raises(ValidationError, match=r"train_data_path: .*(?s:.)*SMALLFIRST_VOLUMES"):
        fm.create(str(tiny_folder), "dbfs:/Volumes/main/toys/files/rows.jsonl", "main.toys.desk")


def test_runs_are_listed_newest_first_by_what_is_asked(three: list[JobFolder]) -> None:
    def names(*args: Any, **filters: Any) -> list[str]:
        return [run.name for run in fm.list(*args, **filters)]

    assert names() == ["three", "two", "one"]
    assert names(["one", fm.get("three"), "unknown"]) == ["three", "one"]
    assert names(None, "7") == names(experiment_id="7") == ["two"]
    assert names(statuses=["failed"]) == names(statuses=[RunStatus.FAILED]) == ["three"]
    assert names(user_emails=["other"]) == ["two"]
    second = datetime(2020, 1, 2, 2, tzinfo=UTC)
    assert names(before=second) == ["one"]
    assert names(after=second) == ["three", "two"]
    assert names(after=second, before=second + timedelta(seconds=1)) == ["two"]
    assert names(after="2020-01-01", before="01-04-2020") == ["three", "two", "one"]
    assert names(before="12-31-2019 11:59:59 PM") == []
    assert names(after="00:00:00") == []  # today
    assert fm.list(include_details=False)[0].events is None


def test_a_long_list_comes_in_pages(three: list[JobFolder]) -> None:
    first = fm.list(limit=2)
    assert [run.name for run in first] == ["three", "two"]
    assert first.has_next_page
    second = first.next_page()
    assert [run.name for run in second] == ["one"]
    assert not second.has_next_page
    assert "<td>three</td>" in first._repr_html_()


@pytest.mark.parametrize(
    ("filters", "rule"),
    [
        ({"before": "yesterday"}, 'before: "yesterday" is no time'),
        ({"after": "2020-13-01"}, 'after: "2020-13-01" is no time'),
        ({"statuses": ["DONE", "FAILD"]}, 'statuses: "DONE" is no status'),
        ({"statuses": ["FAILD"]}, 'did you mean "FAILED"'),
        ({"limit": 0}, "limit: 0 is less than 1"),
    ],
)
def test_filters_that_cannot_be_read_are_refused(three: list[JobFolder], filters: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        fm.list(**filters)


def test_cancel_counts_what_it_stops_and_says_so(three: list[JobFolder], capsys: pytest.CaptureFixture[str]) -> None:
    (three[0].folder / "events.jsonl").unlink()
    three[0].log.append("CREATED", "")
    assert fm.cancel(["one", "two"]) == 1
    assert capsys.readouterr().out == "stopping one\n"
    assert three[0].state == "STOPPED"
    assert fm.cancel(experiment_id="7") == 0
    assert fm.cancel(fm.get("one")) == 0
    assert capsys.readouterr().out == "no run to stop\n" * 2
    for arguments in ({}, {"runs": "one", "experiment_id": "7"}):
        with pytest.raises(DatabricksModelTrainingRequestError, match="either runs or experiment_id"):
            fm.cancel(**arguments)  # type: ignore[arg-type]


def test_what_is_not_there_is_told_with_what_is_near(three: list[JobFolder]) -> None:
    for ask in (fm.get, fm.get_events, fm.get_checkpoints, fm.cancel):
        with pytest.raises(DatabricksGenAIResponseError, match='did you mean "three"'):
            ask("thre")  # type: ignore[operator]
    with pytest.raises(DatabricksGenAIResponseError, match="None is neither a run nor the name of one"):
        fm.get_checkpoints(None)  # type: ignore[arg-type]


def test_following_a_run_that_has_ended_prints_its_events_and_returns(
    three: list[JobFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [event.type for event in fm.get_events("three", follow=True)] == ["CREATED", "FAILED"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["CREATED", "FAILED"]


def test_no_checkpoint_before_the_first_epoch(three: list[JobFolder], capsys: pytest.CaptureFixture[str]) -> None:
    assert fm.get_checkpoints("one") == []
    assert "no checkpoint yet" in capsys.readouterr().out


def test_models_that_can_be_trained(three: list[JobFolder]) -> None:
    models = fm.get_models()
    assert [(m.name, m.display_name) for m in models] == [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct")
    ]
    assert models[0].max_context_length is None  # its weights are not here
    assert "<th>Maximum Context Length</th>" in models._repr_html_()
