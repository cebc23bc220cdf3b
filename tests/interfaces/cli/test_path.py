"""Verbs of the path: a run's record, verdicts in words, signatures over them, exit codes."""

import json
from pathlib import Path

import pytest
from fixtures.cli import call, evaluated, failed, measured

from smallfirst.path import run as pipeline
from smallfirst.path.project.run_folder import RunFolder


@pytest.mark.parametrize("fails", ["settings", "rows", "gate"])
def test_a_run_that_fails_prints_its_record_all_the_same(
    desk_folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    code = {"settings": 2, "rows": 1, "gate": 3}[fails]
    gate = "gate: {accuracy_at_least: 0.8}\nrouting: {small: smallest}\n"
    (desk_folder / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl}\n" + gate)
    if fails == "settings":
        (desk_folder / "task.yaml").write_text("nam: desk\n")
    if fails == "rows":
        (desk_folder / "train.jsonl").write_text("{}\n")
    monkeypatch.setattr(pipeline, "train_stage", lambda *_, **__: RunFolder.latest("desk"))
    monkeypatch.setattr(pipeline, "evaluate_stage", lambda *_, **__: None)
    monkeypatch.setattr(RunFolder, "mlflow_run_id", lambda _: "none")
    monkeypatch.setattr("smallfirst.registry.runs.TrackedRun.set_tags", lambda *_: None)  # no MLflow run was made
    monkeypatch.setattr(pipeline, "report_stage", lambda _, run: (run.path / "report.html").write_text(""))
    evaluated(wrong=30)
    RunFolder.latest("desk").save_evaluation(measured(wrong=15).model_copy(update={"candidate": "words"}))
    result = call("run", desk_folder, "--json")
    message = failed(result, code)
    record = json.loads(result.stdout)
    assert (record["error"]["exit_code"], record["promoted"]) == (code, None)
    assert message == f"{record['error']['type']}: {record['error']['message']}\n" or fails == "gate"
    if fails == "gate":
        assert list(record["paths"]) == ["words", "small"]
        assert [verdict["passed"] for verdict in record["gate"]["verdicts"]] == [False, False]
        assert Path(record["report"]).exists()
        assert record["error"]["message"].startswith("Cannot be told yet: label about ")
        assert "words: FAIL" in record["error"]["message"]
        assert record["outcome"]["kind"] == "cannot be told yet"
        assert "0.850" in record["error"]["message"]


@pytest.mark.parametrize(
    ("large", "max_usd", "message"),
    [
        ("", "1", "ConfigError: --max-usd 1: task.yaml names no large model"),
        ('large: {endpoint: {base_url: "http://localhost:1/v1", model: big}}\n', "0", "it must be above 0"),
        ('large: {endpoint: {base_url: "http://localhost:1/v1", model: big}}\n', "0.01", "above large.max_usd, $0.01"),
    ],
)
def test_a_run_that_would_cost_more_than_allowed_ends_before_training(
    desk_folder: Path, large: str, max_usd: str, message: str
) -> None:
    prices = "prices: {tokens: {big: {input_usd_per_mtok: 1000, output_usd_per_mtok: 1000}}}\n"
    (desk_folder / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl}\n" + large + prices)
    result = call("run", desk_folder, "--max-usd", max_usd)
    assert message in failed(result, 1 if "above large" in message else 2)
    assert not list(desk_folder.rglob("events.jsonl"))


def test_a_stage_that_comes_too_early_names_the_one_before(desk_folder: Path) -> None:
    for verb in ("evaluate", "gate", "promote", "calibrate", "report"):
        assert failed(call(verb, desk_folder), 1) == (
            f"StageMissing: desk has no finished run\n  next: smallfirst train {desk_folder}\n"
        )


def test_a_failing_gate_ends_with_three_and_prints_why(desk_folder: Path) -> None:
    evaluated(wrong=30)
    result = call("gate", desk_folder)
    failed(result, 3)
    assert result.stdout.splitlines()[0] == "small: FAIL"
    assert "goes live by the gate: none" in result.stdout.splitlines()
    assert f"smallfirst override {desk_folder} --candidate small --by NAME --because REASON" in result.stdout


def test_a_default_gate_is_no_permission(desk_folder: Path) -> None:
    evaluated(wrong=3)
    result = call("gate", desk_folder)
    assert result.exit_code == 3
    assert "task.yaml sets no gate: this one is the default, and lets nobody answer alone" in result.stdout
    assert f"smallfirst calibrate {desk_folder}" in result.stdout
    refused = call("promote", desk_folder)
    assert refused.exit_code == 3
    assert "small meets the default gate, but task.yaml sets none" in refused.output
