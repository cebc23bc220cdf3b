"""The command line: verbs in the order of the path, errors without a traceback, exit codes for scripts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fixtures.evaluations import evaluated_row, evaluation_of

import smallfirst
from smallfirst.cli.main import COMMANDS, main
from smallfirst.evaluation.results import Evaluation
from smallfirst.models.catalog import CATALOG
from smallfirst.pipeline import run as pipeline
from smallfirst.project.rows import read_rows
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file
from smallfirst.stats.intervals import wilson

STAGES = "init check train evaluate gate override learn suspects promote export rollback calibrate report run record"
VERBS = (*STAGES.split(), "label", "models", *COMMANDS.names())


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def failed(result: Result, code: int) -> str:
    """The error message of a call that must have ended with `code` and no traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task of 90 good rows, with nothing but two settings."""
    things = ("card", "fee", "pin")
    frames = ("where is my {}, number {}", "{} of day {} is wrong", "question {}: {}")
    rows = [
        {"text": frame.format(things[i % 3], f"{i}{i * 7919 % 1000}"), "label": things[i % 3]}
        for frame in frames
        for i in range(30)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl}\n")
    return tmp_path


def measured(wrong: int, n: int = 100) -> Evaluation:
    rows = [evaluated_row(str(i), "a", "a" if i >= wrong else "b", confidence=0.5) for i in range(n)]
    share = wilson(n - wrong, n)
    return evaluation_of(rows, model="small-1", measures={"macro_f1": share}, cost_usd_per_1k=0.0, p50_ms=4.0)


def evaluated(wrong: int) -> None:
    """A run of the task of which the small model was evaluated."""
    run_folder = RunFolder.new("desk")
    (run_folder.path / "run.json").write_text("{}")
    run_folder.save_evaluation(measured(wrong))


def test_help_lists_the_verbs_in_the_order_of_the_path() -> None:
    result = call("--help")
    assert result.exit_code == 0
    listed = re.findall(r"^  ([a-z]+) ", result.output.split("Commands:")[1], flags=re.MULTILINE)
    assert tuple(listed) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 3


def test_bars_of_libraries_are_off_in_a_pipe_before_a_command_imports_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    CliRunner().invoke(main, ["models"])
    assert os.environ["TQDM_DISABLE"] == "1"


def test_the_version_is_the_packages() -> None:
    assert call("--version").output == f"smallfirst, version {smallfirst.__version__}\n"


def test_init_writes_a_template_that_is_read_once_the_rows_are_there(tmp_path: Path, folder: Path) -> None:
    target = tmp_path / "new" / "task.yaml"
    result = call("init", target.parent)
    assert result.output == f"wrote {target}\nnext: put your rows beside it, then  smallfirst check {target}\n"
    assert [path.name for path in target.parent.iterdir()] == ["task.yaml"]
    (target.parent / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    task_file = read_task_file(target)
    assert task_file.name == "tickets"
    assert len(read_rows(task_file).train) > 30


def test_the_settings_that_the_template_leaves_commented_out_are_real_ones(tmp_path: Path) -> None:
    call("init", tmp_path)
    lines = (tmp_path / "task.yaml").read_text().splitlines()
    # A setting that is commented out is "# name: value"; the notes above the first setting are prose.
    start = next(i for i, line in enumerate(lines) if line.startswith("name:"))
    shown = [re.sub(r"^(\s*)# (?=\s*[a-z0-9_]+:( |$))", r"\1", line) for line in lines[start:]]
    (tmp_path / "task.yaml").write_text("\n".join(shown))
    task_file = read_task_file(tmp_path)
    assert task_file.settings["labels"] == ["billing", "delivery"]
    assert task_file.large is not None
    assert task_file.large.endpoint is not None
    assert task_file.data.columns.label == "category"
    assert task_file.gate.p95_ms_at_most == 200


def test_init_overwrites_nothing(folder: Path) -> None:
    before = (folder / "task.yaml").read_bytes()
    assert failed(call("init", folder), 2) == (
        f"ConfigError: {folder / 'task.yaml'} exists already\n  next: edit it, or name another folder\n"
    )
    assert (folder / "task.yaml").read_bytes() == before


@pytest.mark.parametrize("verb", [*STAGES.split()[1:], "label", "serve", "parity", "queue", "harvest", "challenge"])
def test_a_missing_file_is_a_wrong_setting(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    signed = ("--candidate", "small", "--by", "Ada", "--because", "seen")
    more = {"override": signed, "label": ("rows.jsonl",), "export": ("out",)}
    assert failed(call(verb, path, *more.get(verb, ())), 2) == (
        f"ConfigError: {path}: no such file\n  next: smallfirst init   writes a commented task.yaml\n"
    )


def test_a_signature_lets_a_failing_candidate_pass_and_keeps_what_it_missed(folder: Path) -> None:
    evaluated(wrong=30)
    assert call("gate", folder).exit_code == 3
    signed = call("override", folder, "--candidate", "small", "--by", "Ada", "--because", "the pilot is small")
    assert signed.exit_code == 0
    assert "overridden by Ada" in signed.output
    assert "the pilot is small" in signed.output
    verdict = RunFolder.latest("desk").verdicts().of("small")
    assert verdict.passed
    assert len(verdict.failed_checks) == 1


def test_nobody_can_sign_for_a_candidate_that_was_not_judged(folder: Path) -> None:
    evaluated(wrong=30)
    call("gate", folder)
    message = failed(call("override", folder, "--candidate", "smal", "--by", "Ada", "--because", "seen"), 2)
    assert 'no verdict on "smal" to override — did you mean "small"?' in message


def test_suspects_are_exported(folder: Path, tmp_path: Path) -> None:
    evaluated(wrong=30)
    result = call("suspects", folder, "--out", tmp_path / "suspects.jsonl")
    assert result.exit_code == 0
    assert f"probable label errors in {tmp_path / 'suspects.jsonl'}" in result.output
    assert (tmp_path / "suspects.jsonl").exists()


def test_a_wrong_setting_is_told_with_a_suggestion(folder: Path) -> None:
    (folder / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl}\nruting: {}\n")
    message = failed(call("check", folder), 2)
    assert message == f'ConfigError: {folder / "task.yaml"}:\n  ruting: unknown setting — did you mean "routing"?\n'


def test_an_unknown_verb_or_option_is_wrong_usage() -> None:
    assert call("trian").exit_code == 2
    assert call("check", "--jsn").exit_code == 2


def test_bad_rows_are_all_named_and_end_with_one(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "a"}\n{"text": "", "label": "card"}\n')
    message = failed(call("check", folder), 1)
    assert message.splitlines()[0] == f"DataError: {folder / 'train.jsonl'}: 2 bad and 90 good rows"
    assert f'  {folder / "train.jsonl"}:92  "text" is empty' in message


def test_check_prints_what_it_found_and_ends_with_zero(folder: Path) -> None:
    result = call("check", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sum(found["n_rows"].values()) == 90
    assert found["verdict"] in ("GO", "FIX")


def test_check_writes_every_place_and_measures_the_curve_on_request(folder: Path) -> None:
    twice = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(2 * twice)  # each of 90 rows stands there again, the splits keep both together
    result = call("check", folder, "--rows-out", folder / "rows.jsonl", "--curve")
    assert result.exit_code == 0, result.output
    assert "more rows (a linear model on words" in result.stdout
    places = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    repeats = [place for place in places if place["finding"].startswith("train rows that repeat")]
    assert f": {len(repeats)} (" in repeats[0]["finding"]
    assert len(repeats) > 10
    assert result.stdout.splitlines()[-1] == f"{len(places)} places in {folder / 'rows.jsonl'}"


def test_rows_that_cannot_be_used_end_with_one_and_are_told_on_both_streams(folder: Path) -> None:
    twice = (folder / "train.jsonl").read_text()
    (folder / "test.jsonl").write_text(twice)  # every test row is a training row
    (folder / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl, test: test.jsonl}\n")
    result = call("check", folder)
    assert failed(result, 1) == ("DataError: the rows cannot be used as they are\n  next: mend what is marked stop\n")
    assert "NO" in result.stdout


def test_a_stage_that_comes_too_early_names_the_one_before(folder: Path) -> None:
    for verb in ("evaluate", "gate", "promote", "calibrate", "report"):
        assert failed(call(verb, folder), 1) == (
            "StageMissing: desk has no finished run\n  next: smallfirst train task.yaml\n"
        )


def test_a_failing_gate_ends_with_three_and_prints_why(folder: Path) -> None:
    evaluated(wrong=30)
    result = call("gate", folder)
    failed(result, 3)
    assert result.stdout.splitlines()[0] == "small: FAIL"
    assert result.stdout.splitlines()[-1] == "smallest candidate that passes: none: keep the API"


@pytest.mark.parametrize("fails", ["settings", "rows", "gate"])
def test_a_run_that_fails_prints_its_record_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    code = {"settings": 2, "rows": 1, "gate": 3}[fails]
    gate = "gate: {accuracy_at_least: 0.8}\nrouting: {small: smallest}\n"
    (folder / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl}\n" + gate)
    if fails == "settings":
        (folder / "task.yaml").write_text("nam: desk\n")
    if fails == "rows":
        (folder / "train.jsonl").write_text("{}\n")
    monkeypatch.setattr(pipeline, "train_stage", lambda *_, **__: RunFolder.latest("desk"))
    monkeypatch.setattr(pipeline, "evaluate_stage", lambda *_: None)
    monkeypatch.setattr(pipeline, "measure_curve", lambda *_: None)
    monkeypatch.setattr(pipeline, "report_stage", lambda _, run: (run.path / "report.html").write_text(""))
    evaluated(wrong=30)
    RunFolder.latest("desk").save_evaluation(measured(wrong=15).model_copy(update={"candidate": "words"}))
    result = call("run", folder, "--json")
    message = failed(result, code)
    record = json.loads(result.stdout)
    assert (record["error"]["exit_code"], record["promoted"]) == (code, None)
    assert message == f"{record['error']['type']}: {record['error']['message']}\n" or fails == "gate"
    if fails == "gate":
        assert list(record["paths"]) == ["words", "small"]
        assert [verdict["passed"] for verdict in record["gate"]["verdicts"]] == [False, False]
        assert Path(record["report"]).exists()
        assert "words may not go live; it came nearest\nwords: FAIL" in record["error"]["message"]
        assert "0.850" in record["error"]["message"]


def test_a_passing_gate_ends_with_zero(folder: Path) -> None:
    evaluated(wrong=3)
    result = call("gate", folder, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["smallest"] == "small"


def test_models_lists_the_catalogue_and_where_it_stands() -> None:
    result = call("models")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == [entry.name for entry in CATALOG]
    assert all(f"{entry.megabytes} MB" in line for entry, line in zip(CATALOG, lines, strict=True))


def test_a_base_model_that_is_nowhere_is_an_error_with_a_suggestion() -> None:
    message = failed(call("models", "pull", "HuggingFaceTB/SmolLM2-135M-Instuct"), 1)
    assert 'did you mean "HuggingFaceTB/SmolLM2-135M-Instruct"?' in message
