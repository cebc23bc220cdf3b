"""The large path: answers asked only once, and what asking takes: tokens from bytes, prices, earlier answers."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest
from fixtures.preflight import project_of
from fixtures.rows import answered_rows

from smallfirst.base.errors import BadAnswer, StageMissing
from smallfirst.base.progress import Progress
from smallfirst.data.dataset import Dataset
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import ReplayModel, request_key
from smallfirst.path.large_model import LargeForecast, forecast_large, large_findings, recorded_answers, recording_path
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import Rows
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import LargeConfig, TaskFile
from smallfirst.path.run import try_run
from smallfirst.tasks.classify import Classify

TASK = Classify(name="desk", labels=("card", "fee"))
NOTHING = Dataset(name="none", examples=())
ANSWER = (
    '{{"key": "{key}", "text": "{text}", "answer": "card", "prompt_tokens": 3, "completion_tokens": 1, '
    '"latency_ms": 5.0, "cost_usd": 0.001}}\n'
)


dataset = partial(answered_rows, "rows")


def task_file(folder: Path, large: LargeConfig | None) -> TaskFile:
    return TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}, "large": large, "folder": folder})


def recorded(folder: Path, name: str, text: str) -> None:
    header = '{"recorded": {"model": "big-1", "made_at": "2025-01-02", "smallfirst": "0.1.0", "n": 1}}\n'
    row = ANSWER.format(key=request_key(Request.ask(text)), text=text)
    (folder / name).write_text(header + row)


def rows_of(test: Dataset, open_ended: Dataset | None = None) -> Rows:
    return Rows(train=NOTHING, selection=NOTHING, calibration=NOTHING, test=test, open_ended=open_ended)


def test_recorded_answers_are_replayed_and_nobody_is_asked(tmp_path: Path) -> None:
    recorded(tmp_path, "large.jsonl", "where is it")
    job = task_file(tmp_path, LargeConfig(recorded=Path("large.jsonl")))
    rows = rows_of(dataset(("where is it", "card")))
    model = asyncio.run(recorded_answers(job, TASK, rows, progress=Progress(quiet=True)))
    answer = asyncio.run(model.complete(Request.ask("where is it")))
    assert (answer.text, answer.answered_by, answer.cost_usd) == ("card", "big-1", 0.001)
    assert model.note == "recorded 2025-01-02 from big-1 (n=1)"


def test_a_labelled_row_taken_for_an_open_one_gets_no_answer_at_the_recorded_price(tmp_path: Path) -> None:
    recorded(tmp_path, "large.jsonl", "where is it")
    recorded(tmp_path, "open.jsonl", "write a poem")
    both = ReplayModel.load(tmp_path / "open.jsonl").with_silence_on(ReplayModel.load(tmp_path / "large.jsonl"))
    poem, row = (asyncio.run(both.complete(Request.ask(text))) for text in ("write a poem", "where is it"))
    assert (poem.text, both.name) == ("card", "big-1")
    assert (row.text, row.cost_usd, row.latency_ms) == ("", 0.001, 5.0)
    with pytest.raises(BadAnswer, match="has no answer of big-1"):
        asyncio.run(both.complete(Request.ask("something else")))


PRICES = "prices: {tokens: {big: {input_usd_per_mtok: 1000, output_usd_per_mtok: 1000000}}}\n"
"""A dollar for each thousand tokens read, and for each one written."""


def large(more: str = "") -> str:
    return f'large: {{endpoint: {{base_url: "http://localhost:1/v1", model: big}}{more}}}\n'


def forecast(project: Project) -> LargeForecast:
    found = forecast_large(project.file, project.task, project.rows)
    assert found is not None
    return found


def record_some(project: Project, n: int, *, usd: float = 0.5, latency_ms: float = 2000.0) -> None:
    path = recording_path(project.file, project.task)
    path.parent.mkdir(parents=True)
    header = {"model": "big", "made_at": "2026-11-26", "smallfirst": "0", "n": n}
    answers = [
        {
            "key": request_key(Request(messages=e.messages)), "text": e.text, "answer": "card", "prompt_tokens": 1,
            "completion_tokens": 1, "latency_ms": latency_ms, "cost_usd": usd,
        }
        for e in project.rows.test.examples[:n]
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"recorded": header}, *answers)))


def test_the_requests_are_those_that_a_run_would_send(tmp_path: Path) -> None:
    more = large(", sample_calibration: 10") + PRICES
    found = forecast(project_of(tmp_path, test=20, calibration=30, more=more))
    assert found.n_requests == {"calibration": 10, "test": 20}
    # An answer is a label of one token at least (and one of rounding), and 8 at most.
    assert found.answer_tokens.low <= 2 * 30
    assert found.cost_usd.low == pytest.approx(found.prompt_tokens.low / 1000 + found.answer_tokens.low)
    assert found.cost_usd.high == pytest.approx(found.prompt_tokens.high / 1000 + found.answer_tokens.high)
    assert found.in_words.startswith("big is asked 30 times (10 calibration, 20 test), about ")


def test_recorded_answers_are_not_asked_again_and_tell_the_time(tmp_path: Path) -> None:
    project = project_of(tmp_path, test=20, calibration=10, more=large() + PRICES)
    record_some(project, 16)
    found = forecast(project)
    assert (found.n_requests, found.n_recorded) == ({"calibration": 10, "test": 4}, 16)
    assert found.spent_usd == 8.0
    assert (found.seconds.low, found.seconds.high) == (7.0, 28.0)  # 14 requests of 2 s, two side by side
    assert found.in_words.endswith("; 16 answers are recorded already")


def test_a_recording_that_the_file_names_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("")
    found = forecast(project_of(tmp_path, more="large: {recorded: answers.jsonl}\n"))
    assert (found.n, found.in_words) == (0, "no rows to ask, so the large model is not asked")
    assert forecast_large((file := project_of(tmp_path)).file, file.task, file.rows) is None


def test_a_limit_that_cannot_do_stops_before_training(tmp_path: Path) -> None:
    project = project_of(tmp_path, more=large(", max_usd: 0.5") + PRICES)
    [finding] = large_findings(project.file, forecast(project))
    assert finding.level == "stop"
    assert finding.what.endswith("for all answers is above large.max_usd, $0.50")
    enough = project_of(tmp_path, more=large(", max_usd: 100000") + PRICES)
    assert list(large_findings(enough.file, forecast(enough))) == []


def test_a_key_or_a_price_that_is_missing_is_found_before_training(tmp_path: Path) -> None:
    hosted = large().replace("http://localhost:1", "https://api.example.com")
    project = project_of(tmp_path, more=hosted + PRICES)
    [finding] = large_findings(project.file, forecast(project))
    assert "the variable OPENAI_API_KEY is not set" in finding.what
    assert (finding.level, finding.rule) == ("fix", "export OPENAI_API_KEY=…")
    _, error = try_run(project.file)
    assert "the variable OPENAI_API_KEY is not set" in str(error)
    with pytest.raises(StageMissing):
        RunFolder.latest(project.file.name)  # nothing was trained
    project = project_of(tmp_path, more=hosted)
    found = forecast(project)
    assert (found.cost_usd, "cost unknown" in found.in_words) == (None, True)
    [finding] = large_findings(project.file, found)
    assert 'no price for "big"' in finding.what
