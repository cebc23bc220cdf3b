"""Fine-tuning jobs with the openai client: from an upload to the model's answer, and every way to be refused."""

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from fixtures.finetuning_api import add_job, chat_lines
from fixtures.jobs import TIMEOUT_S
from starlette.testclient import TestClient

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.base.files import try_lock
from smallfirst.base.paths import home as state_folder
from smallfirst.interfaces.databricks import foundation_model as fm
from smallfirst.interfaces.jobs import job_folder
from smallfirst.interfaces.jobs.job_folder import JobFolder, JobResult, JobSpec, jobs_folder, user_name
from smallfirst.interfaces.openai_finetuning.files import FineTuningSettings
from smallfirst.interfaces.openai_finetuning.plugin import (
    fine_tuning,
    job_object,
    make_job_spec,
    parse_job,
    public_message,
)
from smallfirst.ledger.keys import KeyPolicy
from smallfirst.ledger.ledger import Ledger
from smallfirst.registry import versions
from smallfirst.serving.app import build_app
from smallfirst.serving.settings import ServeSettings
from smallfirst.training.config import TrainConfig

QUESTION: list[Any] = [{"role": "user", "content": "where is my pin"}]


@pytest.fixture(autouse=True)
def _own_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of other test files do not take this one's turn."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def upload(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def until(client: openai.OpenAI, id: str, *statuses: str) -> Any:
    end = time.monotonic() + TIMEOUT_S
    while (job := client.fine_tuning.jobs.retrieve(id)).status not in statuses:
        assert job.status in ("validating_files", "queued", "running"), job.error
        assert time.monotonic() < end, job.status
        time.sleep(0.1)
    return job


def test_from_an_upload_to_the_answer_of_the_model(
    start_api: Any, chat_file: bytes, tiny_folder: Path, warm_jobs: None
) -> None:
    server = start_api("one", "two", max_open_jobs=1, max_loaded_models=1)
    one, two = server.client("one"), server.client("two")
    training, validation = upload(one, chat_file), upload(one, chat_file)
    supervised: Any = {"hyperparameters": {"n_epochs": 8, "learning_rate_multiplier": 50}}
    made = one.fine_tuning.jobs.create(
        model="tiny",
        training_file=training,
        validation_file=validation,
        suffix="desk",
        seed=7,
        method={"type": "supervised", "supervised": supervised},
        metadata={"team": "claims"},
    )
    assert made.status in ("validating_files", "queued", "running")
    assert (made.fine_tuned_model, made.finished_at, made.trained_tokens, made.error) == (None, None, None, None)
    with pytest.raises(openai.RateLimitError, match="1 jobs have not ended") as caught:
        one.fine_tuning.jobs.create(model="tiny", training_file=training)
    assert caught.value.response.headers["retry-after"] == "60"
    one.files.delete(training)  # the job has its own copy of the rows

    job = until(one, made.id, "succeeded")
    name = f"ft:tiny:smallfirst:desk:{made.id.removeprefix('ftjob-')}"
    assert (job.fine_tuned_model, job.model, job.seed) == (name, "tiny", 7)
    assert (job.training_file, job.validation_file) == (training, validation)
    assert (job.metadata, job.result_files, job.object) == ({"team": "claims"}, [], "fine_tuning.job")
    assert job.hyperparameters.n_epochs == 8
    assert job.method is not None
    assert job.finished_at is not None
    assert job.finished_at >= job.created_at
    assert job.estimated_finish is None

    events = list(one.fine_tuning.jobs.list_events(made.id, limit=7))  # follows the pages
    kinds = [event.message.partition(":")[0] for event in reversed(events)]
    marks = ["CREATED", "STARTED", "DATA_VALIDATED", "TRAIN_STARTED", "TRAIN_FINISHED", "COMPLETED"]
    assert [kind for kind in kinds if kind in marks] == marks
    assert len({event.id for event in events}) == len(events)
    assert {event.type for event in events} == {"message", "metrics"}
    assert events[0].message == f"COMPLETED: the model is {name}"
    for secret in (str(tiny_folder), str(state_folder())):
        assert all(secret not in event.message for event in events)
    assert any(event.message.startswith("ESTIMATED: about ") for event in events)
    assert any("valid_loss" in (event.data or {}) for event in events)

    assert [model.id for model in one.models.list()] == [name, "fixed"]
    assert one.models.retrieve(name).created == job.finished_at
    answer = one.chat.completions.create(model=name, messages=QUESTION)
    assert (answer.choices[0].message.content, answer.model) == ("on its way", name)
    pieces = one.chat.completions.create(model=name, messages=QUESTION, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "on its way"
    with pytest.raises(openai.BadRequestError) as long:
        one.chat.completions.create(model=name, messages=[{"role": "system", "content": "pin " * 900}, *QUESTION])
    assert long.value.code == "context_length_exceeded"

    # Another key knows nothing of it.
    assert [model.id for model in two.models.list()] == ["fixed"]
    assert two.fine_tuning.jobs.list().data == []
    for ask in (two.fine_tuning.jobs.retrieve, two.fine_tuning.jobs.cancel, two.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError, match="Could not find fine tune"):
            ask(made.id)
    with pytest.raises(openai.NotFoundError):
        two.chat.completions.create(model=name, messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        two.models.retrieve(name)
    with pytest.raises(openai.BadRequestError, match="cannot be fine-tuned here"):
        two.fine_tuning.jobs.create(model=name, training_file=upload(two, chat_file))

    # This machine's own interfaces see the same job and model.
    run = fm.get(made.id)
    assert (run.status.display_name, run.created_by) == ("Completed", f"key {server.owner('one')[:8]}")
    assert run.register_to == "main.fine_tuning.desk"
    assert versions.resolve("main.fine_tuning.desk/1").tags["job"] == made.id
    with pytest.raises(openai.BadRequestError, match="can no longer be cancelled: it is succeeded"):
        one.fine_tuning.jobs.cancel(made.id)

    # A model whose files are gone is down, again and again; nobody else's request suffers.
    gone = add_job(1, "STARTED", owner=server.owner("one"))
    JobResult(model="main.fine_tuning.gone", version=1, best_epoch=1).save(gone.folder / "result.json")
    gone.log.append("COMPLETED", "")
    for _ in range(2):
        with pytest.raises(openai.InternalServerError) as caught_down:
            one.chat.completions.create(model=f"ft:tiny:smallfirst::{1:016x}", messages=QUESTION)
        assert (caught_down.value.status_code, caught_down.value.code) == (503, "model_unavailable")
    assert one.chat.completions.create(model=name, messages=QUESTION).choices[0].message.content == "on its way"

    # A server that starts again finds all of it; the model is a base model too.
    again = start_api("one").client("one")
    assert again.fine_tuning.jobs.retrieve(made.id) == job
    assert again.chat.completions.create(model=name, messages=QUESTION).choices[0].message.content == "on its way"
    second = again.fine_tuning.jobs.create(model=name, training_file=validation, hyperparameters={"n_epochs": 50})
    assert second.model == name
    assert again.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    order = JobFolder(jobs_folder() / second.id).spec
    assert order.model == "tiny"
    assert order.weights == str(versions.resolve("main.fine_tuning.desk/1").folder)
    assert [listed.id for listed in again.fine_tuning.jobs.list(limit=1)] == [second.id, made.id, gone.name]
    assert [listed.id for listed in again.fine_tuning.jobs.list(metadata={"team": "claims"})] == [made.id]


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "training_file": "FILE", **changes}


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (body(model="tiny2"), "model", 'cannot be fine-tuned here — did you mean "tiny"?'),
    (body(model="../tiny"), "model", "cannot be fine-tuned here"),
    (body(model="ft:tiny:smallfirst::" + "0" * 16), "model", "cannot be fine-tuned here"),
    (body(training_file="file-" + "0" * 24), "training_file", "does not exist"),
    (body(training_file="../../rows"), "training_file", "does not exist"),
    (
        body(**supervised(learning_rate=1)),
        "method.supervised.hyperparameters.learning_rate",
        'Unknown parameter: "method.supervised.hyperparameters.learning_rate" — did you mean '
        '"learning_rate_multiplier"?',
    ),
    (body(hyperparameters={"epochs": 3}), "hyperparameters.epochs", 'did you mean "n_epochs"?'),
    (body(**supervised(n_epochs=51)), "method.supervised.hyperparameters.n_epochs", "less than or equal to 50"),
    (body(method={"type": "dpo"}), "method.type", "Input should be 'supervised'"),
    (body(hyperparameters={}, **supervised()), "hyperparameters", "in `method` alone"),
    (body(integrations=[{"type": "wandb", "wandb": {}}]), "integrations", 'Unknown parameter: "integrations"'),
    (body(suffix="a/b"), "suffix", "suffix"),
    (body(metadata={"a": 1}), "metadata.a", "metadata.a"),
    (body(trainingfile="x"), "trainingfile", 'did you mean "training_file"?'),
    ({"model": "tiny"}, "training_file", "training_file"),
]


def test_a_job_that_cannot_be_done_is_refused_by_its_field(start_api: Any, chat_file: bytes) -> None:
    client = start_api().client()
    id = upload(client, chat_file)
    for asked, param, words in REFUSED:
        given = {**asked, "training_file": id} if asked.get("training_file") == "FILE" else asked
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/fine_tuning/jobs", body=given, cast_to=object)
        assert caught.value.param == param
        assert words in caught.value.message
    assert [*jobs_folder().iterdir()] == []


def test_a_user_has_few_open_jobs_and_trains_what_the_key_is_for(start_api: Any) -> None:
    server = start_api("one", "two", max_open_jobs_of_user=1)
    _, server.secrets["narrow"] = server.keys.create("narrow", KeyPolicy(models=("other",)))
    job = add_job(1, "STARTED", owner=server.owner("one"))
    lock = try_lock(job.lock)
    assert lock is not None  # a process seems to run it
    try:
        for key, error, words in (
            ("one", openai.RateLimitError, "1 jobs of yours have not ended yet"),
            ("two", openai.BadRequestError, "File 'file-1' does not exist"),
            ("narrow", openai.BadRequestError, '"tiny" cannot be fine-tuned here. There are: none'),
        ):
            with pytest.raises(error, match=words):
                server.client(key).fine_tuning.jobs.create(model="tiny", training_file="file-1")
    finally:
        os.close(lock)


def test_the_job_names_the_bad_lines_of_a_file_which_the_server_never_reads(
    start_api: Any, chat_file: bytes, warm_jobs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_folder, "load_rows", None)  # in this process, the server's; jobs have their own
    client = start_api(max_rows=50).client()
    lines = chat_lines(12)
    lines[6] = '{"messages": [{"role": "user", "content": "and?"}]}'
    good = upload(client, chat_file)
    bad = {
        upload(client, "\n".join(lines).encode()): ".jsonl:7  ",
        upload(client, b'{"text": "a", "label": "b"}\n' * 10): ".jsonl:1  a row of text + label",
        upload(client, b'{"prompt": "a", "completion": "b"}\n' * 51): "more than 50 rows",
        upload(client, b"\x00\xff\x00" * 100): ": neither UTF-8 nor any other encoding",
    }
    jobs = {id: client.fine_tuning.jobs.create(model="tiny", training_file=good, validation_file=id) for id in bad}
    for id, words in bad.items():
        job = until(client, jobs[id].id, "failed")
        assert (job.error.code, job.error.param) == ("invalid_file", "validation_file")
        assert f"{id}.jsonl:" in job.error.message
        assert words in job.error.message
        assert str(state_folder()) not in job.error.message


def test_jobs_are_listed_in_pages_and_by_their_metadata(start_api: Any) -> None:
    metadata = [{}, *({"team": "claims", "odd": str(i % 2)} for i in range(1, 5))]
    names = [add_job(i, "STOPPED", metadata=given).name for i, given in enumerate(metadata)][::-1]
    add_job(8, "STOPPED", owner="somebody else's")
    add_job(9, "STOPPED", interface="other")
    client = start_api().client()
    jobs = client.fine_tuning.jobs
    assert [job.id for job in jobs.list()] == names
    first = jobs.list(limit=3)
    assert ([job.id for job in first.data], first.has_more) == (names[:3], True)
    rest = jobs.list(limit=3, after=names[2])
    assert ([job.id for job in rest.data], rest.has_more) == (names[3:], False)
    assert [job.id for job in jobs.list(metadata={"odd": "1", "team": "claims"})] == [names[1], names[3]]
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [names[4]]
    for asked in ({"limit": 101}, {"after": "ftjob-x"}):
        with pytest.raises(openai.BadRequestError) as caught:
            jobs.list(**asked)  # type: ignore[arg-type]
        assert caught.value.param == next(iter(asked))
    for id in ("ftjob-" + "f" * 16, "ftjob-x", "..%2f..", f"ftjob-{9:016x}"):
        with pytest.raises(openai.NotFoundError):
            jobs.retrieve(id)


def test_names_that_are_nearly_those_of_a_model_are_unknown(start_api: Any) -> None:
    job = add_job(1, "STARTED")
    lock = try_lock(job.lock)
    assert lock is not None  # a process seems to run the job: the server starts none that would add events
    try:
        client = start_api().client()
        assert [model.id for model in client.models.list()] == ["fixed"]  # nothing has come of it yet
        JobResult(model="main.fine_tuning.gone", version=1, best_epoch=1).save(job.folder / "result.json")
        job.log.append("COMPLETED", "")
    finally:
        os.close(lock)
    name = f"ft:tiny:smallfirst::{1:016x}"
    assert [model.id for model in client.models.list()] == [name, "fixed"]
    assert client.chat.completions.create(model="fixed", messages=QUESTION).choices[0].message.content == "fixed"
    for other in (name.replace("::", ":x:"), name.replace("tiny", "small"), name[:-1] + "2", "ft:..:x"):
        with pytest.raises(openai.NotFoundError, match="Served: fixed"):
            client.chat.completions.create(model=other, messages=QUESTION)


@pytest.mark.parametrize(("package", "extra"), [("torch", "train"), ("python_multipart", "openai-finetuning")])
def test_fine_tuning_names_the_extra_it_lacks(package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"(?s)Fine-tuning.*smallfirst\[{extra}\]"):
        fine_tuning()


def test_a_server_of_nothing_but_fine_tuning_is_one_and_without_it_there_is_no_such_path(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for plugins, status in (([fine_tuning()], 200), ([], 404)):
        models: Any = {} if plugins else {"m": None}
        app = build_app(models, ledger=ledger, settings=ServeSettings(), plugins=plugins)
        with TestClient(app, base_url="http://localhost") as client:
            for path in ("/v1/files", "/v1/fine_tuning/jobs"):
                assert client.get(path).status_code == status
    with pytest.raises(ConfigError, match="no model to serve"):
        build_app({}, ledger=ledger, settings=ServeSettings())
    ledger.close()


@pytest.mark.parametrize(("kinds", "status"), [
    ((), "validating_files"), (("QUEUED",), "queued"), (("QUEUED", "STARTED"), "running"),
    (("STARTED", "TRAIN_STARTED", "REQUEUED"), "queued"), (("STARTED", "COMPLETED"), "succeeded"),
    (("STARTED", "FAILED"), "failed"), (("STOPPED",), "cancelled"),
])  # fmt: skip
def test_every_state_has_a_status(kinds: tuple[str, ...], status: str) -> None:
    job = add_job(1, *kinds)
    shown = job_object(job)
    assert shown["status"] == status
    ended = status in ("succeeded", "failed", "cancelled")
    assert (shown["finished_at"] is not None) == ended
    assert (shown["fine_tuned_model"] is not None) == (status == "succeeded")
    assert (shown["error"] is not None) == (status == "failed")
    job.request_stop()
    assert job_object(job)["status"] == (status if ended else "cancelled")


def test_a_job_under_way_says_when_it_will_end_before_its_first_step() -> None:
    job = add_job(1)
    job.log.append("ESTIMATED", "about 2 minutes of training", seconds=120.0)
    assert job_object(job)["estimated_finish"] is None
    began = job.log.append("STARTED", "")
    assert job_object(job)["estimated_finish"] == int(datetime.fromisoformat(began.at).timestamp() + 120)
    job.log.append("TRAIN_FINISHED", "")
    assert job_object(job)["estimated_finish"] is None


def test_a_job_that_has_succeeded_says_how_many_tokens_it_read() -> None:
    job = add_job(1, "STARTED")
    job.log.append("TRAIN_UPDATED", "", tokens=40)
    job.log.append("TRAIN_UPDATED", "", tokens=80)
    assert job_object(job)["trained_tokens"] is None  # not before its end
    job.log.append("COMPLETED", "")
    assert job_object(job)["trained_tokens"] == 80


def test_an_error_names_the_rows_and_no_path_of_the_server(start_api: Any) -> None:
    job = add_job(1, "STARTED")
    id = "file-" + "a" * 24
    job.log.append(
        "FAILED",
        f"1 of 2 rows cannot be used:\n  {job.folder}/rows/{id}.jsonl:7  900 tokens; the limit is 512\n  next: mend it",
    )
    other = add_job(2, "STARTED")
    other.log.append("FAILED", f"its process died 4 times; the last lines of {other.output}:\nsecret line")
    client = start_api().client()
    error = client.fine_tuning.jobs.retrieve(job.name).error
    assert (error.code, error.param) == ("invalid_file", "training_file")
    assert error.message == f"1 of 2 rows cannot be used:\n  {id}.jsonl:7  900 tokens; the limit is 512"
    error = client.fine_tuning.jobs.retrieve(other.name).error
    assert (error.code, error.param, error.message) == ("training_failed", None, "its process died 4 times")
    assert public_message(f"no weights in {state_folder()}/weights", job) == "no weights in …/weights"
    (event,) = client.fine_tuning.jobs.list_events(other.name, limit=1).data
    assert (event.level, event.message) == ("error", "FAILED: its process died 4 times")


def order(base: tuple[str, str] = ("tiny", "nowhere"), *, owner: str = "", **asked: Any) -> JobSpec:
    body = parse_job({"model": base[0], "training_file": "file-1", **asked})
    return make_job_spec(body, 25.0, base, owner=owner, settings=FineTuningSettings(register_to="a.b"))


def test_what_is_left_open_is_train_configs_own(tiny_folder: Path) -> None:
    usual = TrainConfig()
    made = order(("tiny", str(tiny_folder)))
    expected = usual.model_copy(update={"max_seq_tokens": 512, "seed": made.config.seed})  # what the model takes
    assert made.config == expected
    assert (made.model, made.weights) == ("tiny", str(tiny_folder))
    rows = jobs_folder() / made.name / "rows"
    assert (made.train_rows, made.eval_rows, made.created_by) == (f"{rows}/file-1.jsonl", None, user_name())
    assert made.register_to == made.experiment == f"a.b.{made.name}"
    assert made.config.seed != order().config.seed


def test_what_is_given_is_turned_into_our_units() -> None:
    given = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 10}
    made = order(hyperparameters=given, suffix="desk", seed=5, validation_file="file-2", owner="ab" * 32)
    assert made.config.duration == "3ep"
    assert made.config.learning_rate == pytest.approx(2e-3)
    assert made.config.batch_tokens == 4 * 25
    assert made.config.max_seq_tokens == 2048  # the weights are not here to ask
    assert (made.config.seed, Path(made.eval_rows or "").name) == (5, "file-2.jsonl")
    assert (made.register_to, made.created_by) == ("a.b.desk", "key abababab")
    assert made.submitted["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 10.0}
    assert order(hyperparameters={"batch_size": 1}).config.batch_tokens == 32  # the least that can be trained
    assert order(("hub/model", "hub/model")).weights is None
