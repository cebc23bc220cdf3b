"""What asking the large model takes: requests by part, tokens from bytes, prices of task.yaml, earlier answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.preflight import project_of

from smallfirst.base.errors import StageMissing
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import request_key
from smallfirst.path.large_model import LargeForecast, forecast_large, large_findings, recording_path
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.run import try_run

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
            "key": request_key(Request(messages=e.messages)),
            "text": e.text,
            "answer": "card",
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "latency_ms": latency_ms,
            "cost_usd": usd,
        }
        for e in project.rows.test.examples[:n]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"recorded": header}, *answers)))


def test_the_requests_are_those_that_a_run_would_send(tmp_path: Path) -> None:
    more = large(", sample_calibration: 10, sample_ceiling: 5") + PRICES
    found = forecast(project_of(tmp_path, test=20, calibration=30, more=more))
    assert found.n_requests == {"calibration": 10, "test": 20, "again": 5}
    assert found.cost_usd is not None
    # An answer is a label of one token at least (and one of rounding), and 8 at most.
    assert found.answer_tokens.low <= 2 * 35
    assert found.cost_usd.low == pytest.approx(found.prompt_tokens.low / 1000 + found.answer_tokens.low)
    assert found.cost_usd.high == pytest.approx(found.prompt_tokens.high / 1000 + found.answer_tokens.high)
    assert found.in_words.startswith("big is asked 35 times (10 calibration, 20 test, 5 again), about ")


def test_recorded_answers_are_not_asked_again_and_tell_the_time(tmp_path: Path) -> None:
    project = project_of(tmp_path, test=20, calibration=10, more=large() + PRICES)
    record_some(project, 16)
    found = forecast(project)
    assert (found.n_requests, found.n_recorded) == ({"calibration": 10, "test": 4, "again": 0}, 16)
    assert found.spent_usd == 8.0
    assert found.seconds is not None
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
