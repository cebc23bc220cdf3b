"""The seven functions: a model from create() to its answer in real processes, and every way to ask and be refused."""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fixtures import warm_processes
from fixtures.jobs import TIMEOUT_S, create_job, job_spec
from fixtures.waiting import until

from smallfirst.base.errors import ConfigError
from smallfirst.base.files import try_lock
from smallfirst.interfaces.databricks import foundation_model as fm
from smallfirst.interfaces.databricks.foundation_model import (
    CreateArguments,
    DatabricksGenAIError,
    DatabricksGenAIResponseError,
    DatabricksModelTrainingRequestError,
    RunStatus,
    TrainingRun,
    ValidationError,
    parse_arguments,
)
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import JobFolder, JobProgress, JobResult, JobSpec, MlflowIds
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Request
from smallfirst.registry import versions
from smallfirst.training.config import TrainConfig

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

    until(lambda: fm.get(name).status.display_name in ("Completed", "Failed"), seconds=TIMEOUT_S)  # as DSPy waits
    run = fm.get(name)
    assert run.status.display_name == "Completed", run.details

    types = [event.type for event in fm.get_events(run, follow=True)]
    assert types[0] == "CREATED"
    assert types[-1] == "COMPLETED"
    marks = [
        "CREATED", "STARTED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_STARTED", "TRAIN_FINISHED", "COMPLETED",
    ]  # fmt: skip
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
    train, evaluation = (str(tmp_path / f"{name}.jsonl") for name in ("train", "eval"))
    with pytest.raises(ValidationError) as caught:
        fm.create(str(tiny_folder), train, "main.toys.desk", eval_data_path=evaluation)
    assert str(caught.value).startswith("train_data_path: ")
    for named in ("\neval_data_path: ", "train.jsonl:2", "eval.jsonl:1"):
        assert named in str(caught.value)
    assert len(fm.list(limit=None)) == before


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
    assert names(after="2020-01-01", before="2020-01-04 00:00:00") == ["three", "two", "one"]
    assert names(limit=2) == ["three", "two"]
    assert fm.list(include_details=False)[0].events is None
    for name, value in (("before", "yesterday"), ("after", "2020-13-01"), ("statuses", ["DONE", "FAILD"])):
        with pytest.raises(ValidationError, match=f"{name}: .* is no (time|status)"):
            fm.list(**{name: value})  # type: ignore[arg-type]


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


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder that looks like weights of 512 positions."""
    folder = tmp_path / "tiny-base"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    return folder


def parse(base: Path, rows: Path, **changes: Any) -> CreateArguments:
    given = {"model": str(base), "train_data_path": str(rows), "register_to": "main.claims.tickets"}
    return parse_arguments(**{**given, **changes})


def spec(base: Path, rows: Path, **changes: Any) -> JobSpec:
    return parse(base, rows, **changes).job_spec()


def test_the_defaults(base: Path, rows: Path) -> None:
    made = spec(base, rows, task_type=None, experiment_path="")
    assert made.name.startswith("tiny-base-")
    assert (made.recipe, made.model, made.train_rows, made.eval_rows) == ("chat", str(base), str(rows), None)
    assert (made.register_to, made.experiment) == ("main.claims.tickets", "main.claims.tickets")
    # The duration is Databricks' default, the rate our own, the length the model's (it takes less than our 2048).
    assert made.config == TrainConfig(duration="1ep", learning_rate=2e-4, max_seq_tokens=512)
    assert made.submitted == {"model": str(base), "train_data_path": str(rows), "register_to": "main.claims.tickets"}


def test_given_values_are_used(base: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    config = TrainConfig(method="lora", duration="7ep", max_seq_tokens=64)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"experiment_path": "/Shared/desk"}, {"experiment": "/Shared/desk"}),
        ({"task_type": "instruction_finetune"}, {"recipe": "chat"}),
        ({"task_type": "CONTINUED_PRETRAIN"}, {"recipe": "text"}),
        ({"eval_data_path": str(rows)}, {"eval_rows": str(rows)}),
        ({"eval_prompts": ["where is my card"]}, {"eval_prompts": ("where is my card",)}),
        ({"custom_weights_path": str(base)}, {"weights": str(base)}),
        ({"train_data_path": "rows.jsonl"}, {"train_rows": str(rows)}),  # named from the root
        ({"train_data_path": "dbfs:/Volumes/a/b/c/r.jsonl"}, {"train_rows": "dbfs:/Volumes/a/b/c/r.jsonl"}),
        ({"train_data_path": "main.claims.rows"}, {"train_rows": "main.claims.rows"}),
        ({"train_data_path": "org/set/train"}, {"train_rows": "org/set/train"}),
        ({"model": "no/such-model", "validate_inputs": False}, {"model": "no/such-model"}),
        ({"config": config}, {"config": config}),
        ({"config": config, "training_duration": "2ep"}, {"config": config.model_copy(update={"duration": "2ep"})}),
    ]
    for given, expected in cases:
        made = spec(base, rows, **given)
        assert {name: getattr(made, name) for name in expected} == expected
    made = spec(base, rows, register_to="main.claims", training_duration="1_000_000tok", learning_rate="3e-05",
                context_length=128)  # fmt: skip
    assert made.register_to == f"main.claims.{made.name}"
    assert made.config == TrainConfig(duration="1_000_000tok", learning_rate=3e-5, max_seq_tokens=128)


@pytest.mark.parametrize(
    ("parameter", "value", "rule"),
    [
        ("model", "", "model: missing"),
        ("model", "no/such-model", "no weights found"),
        ("model", "Qwen/Qwen2.5-Coder-1.5B-Instruct", "cannot be trained: its weights are GGUF"),
        ("register_to", "tickets", "must be catalog.schema or"),
        ("register_to", "main.claims.my tickets", 'for example register_to="main.claims.tickets" (got'),
        ("task_type", "CHAT_COMPLETIONS", "should be 'CHAT_COMPLETION', 'INSTRUCTION_FINETUNE' or"),
        ("eval_prompts", "where is my card", "eval_prompts: Input should be a valid tuple"),
        ("training_duration", "soon", '"soon" is not a duration'),
        ("learning_rate", "fast", "learning_rate: Input should be a valid number"),
        ("learning_rate", 0, "should be greater than 0 (got 0)"),
        ("context_length", 15, "greater than or equal to 16 (got 15)"),
        ("context_length", "128", "context_length: Input should be a valid integer"),
        ("context_length", 513, "is more than the 512 tokens that the model takes (got 513)"),
        ("custom_weights_path", "weights.pt", "holds no config.json, no safetensors, no tokenizer"),
        ("custom_weights_path", "dbfs:/Volumes/main/claims/files/ep1", "set SMALLFIRST_VOLUMES"),
    ],
)
def test_each_broken_rule_is_reported_with_its_argument(
    base: Path, rows: Path, parameter: str, value: Any, rule: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(base, rows, **{parameter: value})
    (line,) = str(caught.value.args[0]).splitlines()[1:2]
    assert line.startswith(f"  {parameter}")
    assert rule in str(caught.value)
    assert isinstance(caught.value, ConfigError | DatabricksGenAIError)


def test_custom_weights_in_a_volume(base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "volumes" / "main" / "claims" / "files"
    place.mkdir(parents=True)
    base.rename(place / "ep1")
    monkeypatch.setenv("SMALLFIRST_VOLUMES", str(tmp_path / "volumes"))
    for address in ("dbfs:/Volumes/main/claims/files/ep1", "/Volumes/main/claims/files/ep1"):
        made = spec(base, rows, model="any/name", custom_weights_path=address)
        assert made.weights == str(place / "ep1")
        assert made.model == "any/name"
        assert made.config.max_seq_tokens == 512


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobFolder]:
    """A job that this process seems to run."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    submitted = {"train_data_path": "dbfs:/Volumes/a/b/c/rows.jsonl", "task_type": "CHAT_COMPLETION"}
    config = TrainConfig(duration="3ep", learning_rate=1e-3, max_seq_tokens=64)
    made = create_job(job_spec("tiny-1", config=config, submitted=submitted))
    lock = try_lock(made.lock)
    yield made
    os.close(lock or -1)


def trained_until(job: JobFolder, share: float, seconds_left: float | None = 3700) -> None:
    at = datetime.now(UTC)
    JobProgress(share=share, seconds_left=seconds_left, at=at).save(job.folder / "progress.json")


def test_progress_and_time_left_are_told_only_while_it_trains(job: JobFolder) -> None:
    trained_until(job, 0.34)
    assert TrainingRun.of(job).formatted_eta is None
    for kind in ("STARTED", "TRAIN_STARTED"):
        job.log.append(kind, "")  # type: ignore[arg-type]
    run = TrainingRun.of(job)
    assert (run.status, run.progress) == (RunStatus.RUNNING, 0.34)
    assert run.formatted_eta == "1h 1m"
    assert run.estimated_end_time is not None
    assert timedelta(seconds=3600) < run.estimated_end_time - datetime.now(UTC) < timedelta(seconds=3700)
    assert run.started_at is not None
    trained_until(job, 0.34, -5)
    assert TrainingRun.of(job).formatted_eta is None
    trained_until(job, 1.0)
    job.log.append("TRAIN_FINISHED", "")
    assert TrainingRun.of(job).formatted_eta is None


def test_refresh_writes_the_news_into_the_same_object(job: JobFolder) -> None:
    run = TrainingRun.of(job)
    MlflowIds(run_id="abc", experiment_id="7").save(job.folder / "mlflow.json")
    JobResult(model="main.toys.desk", version=4, best_epoch=2).save(job.folder / "result.json")
    job.log.append("COMPLETED", "registered")
    assert run.status is RunStatus.PENDING
    assert run.refresh() is run
    assert (run.status.display_name, run.details) == ("Completed", "registered")
    assert (run.register_to, run.model_version) == ("main.toys.desk", 4)
    assert (run.run_id, run.experiment_id) == ("abc", "7")
    assert run.completed_at is not None


def test_an_events_name_is_databricks_and_cancel_asks_the_job_to_stop(job: JobFolder) -> None:
    job.log.append("EPOCH_FINISHED", "")
    run = TrainingRun.of(job)
    events = run.get_events()
    assert [event.type for event in events] == ["CREATED", "TRAIN_UPDATED"]
    assert list(events.to_pandas().columns) == ["Type", "Time", "Message"]
    assert TrainingRun.of(job, include_details=False).events is None
    assert run.train_data_path == "dbfs:/Volumes/a/b/c/rows.jsonl"  # as given, not as found
    assert run.cancel() == 1
    assert run.refresh().status is RunStatus.TERMINATING
    job.log.append("STOPPED", "")
    assert run.cancel() == 0
    (job.folder / "job.json").unlink()
    with pytest.raises(DatabricksGenAIResponseError, match='no job is called "tiny-1"'):
        run.refresh()
