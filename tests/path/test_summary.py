"""The last lines of a run, drawn from what the stages left, and for each outcome the commands that come next."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from fixtures.certificates import certificate as make_certificate
from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.preflight import task_of
from fixtures.report import DOMAIN_COUNTS

from smallfirst.base.errors import ConfigError, DataError, DiskFull, TrainingError, Unavailable
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.outcome import LabelsNeeded, Outcome
from smallfirst.measuring.verdict import CheckResult, Verdict
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import DOMAIN, FITTED, FittedCandidates, GateVerdicts, Promotion, RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.summary import after_gate, after_outcome, format_summary, next_steps, summarize_run

OUTCOME = Outcome(
    kind="small first",
    candidate="small",
    title="fine-tuned small model",
    gate="passed",
    rest="large",
    model="main.default.desk",
    version=3,
    alias="champion",
    promise="at most 10 % of kept answers wrong (95 %)",
    share_small=wilson(15, 20),
    share_promised=wilson(15, 20),
    accuracy=wilson(18, 20),
    watched_by="large",
)
PASSED = CheckResult(requirement="accuracy at least 0.8", measured="0.9", passed=True)
FILE = TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}})


def measured(candidate: str, wrong: set[int], *, kept: int = 0, cost: float, rate: float | None = 50.0) -> Evaluation:
    """Twenty rows; a Router accepts the first `kept` of them."""
    routed = candidate == "routed"
    rows = [
        evaluated_row(
            str(i),
            "a",
            "a",
            correct=i not in wrong,
            stage=("small" if i < kept else "large") if routed else candidate,
            certified=i < kept,
        )
        for i in range(20)
    ]
    share = wilson(20 - len(wrong), 20)
    figures = {"measures": {"macro_f1": share}, "cost_usd_per_1k": cost, "p50_ms": 4.0, "requests_per_s": rate}
    return evaluation_of(rows, candidate=candidate, model=f"{candidate}-1", **figures)


def verdict(candidate: str, *checks: CheckResult) -> Verdict:
    passed = all(check.passed for check in checks)
    return Verdict(candidate=candidate, checks=checks, passed=passed, evaluation_fingerprint="e")


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    made = RunFolder.new("desk")
    made.save_evaluation(measured("large", {0}, cost=1.5, rate=None))
    made.save_evaluation(measured("small", {0, 1, 2}, cost=0.0012))
    GateVerdicts(verdicts=(verdict("words", PASSED), verdict("small", PASSED)), winner="words").save(
        made.path / "verdicts.json"
    )
    return made


def finished(made: RunFolder, *, wrong: set[int], below: str = "escalate") -> RunFolder:
    made.save_evaluation(measured("routed", wrong, kept=15, cost=0.4))
    Promotion(name="main.default.desk", version=3, candidate="small", at="2025-01-02T03:04:05+00:00").save(
        made.path / "promoted.json"
    )
    DOMAIN_COUNTS.save(made.path / DOMAIN)
    make_certificate(0.4, below=below).save(made.path / "certificate.json")
    OUTCOME.save(made.path / "outcome.json")
    return made


def test_the_table_shows_every_measured_path_and_what_was_decided(run_folder: RunFolder) -> None:
    (run_folder.model_folder("small")).mkdir()
    (run_folder.model_folder("small") / "model.safetensors").write_bytes(bytes(3_000_000))
    outcome = summarize_run(FILE, finished(run_folder, wrong={0, 19}))
    assert format_summary(outcome).splitlines() == [
        "                        accuracy                 cost / 1k requests         p50   per s    model   share",
        "large (recorded)        0.950 [0.764, 0.991]     $1.50                     4 ms       –        –   100 %",
        "fine-tuned small model  0.850 [0.640, 0.948]     $0.0012                   4 ms      50     3 MB   100 %",
        "routed                  0.900 [0.699, 0.972]     $0.40                     4 ms      50        –   75 % small",
        OUTCOME.sentence,
        "gate PASS · promoted main.default.desk version 3 @champion · certificate: shown",
        "own requests taken for foreign: 2 of 200 test rows, 1 % [0.275, 3.57] (declared: at most 2 %; 1 of 380 rows "
        "that found the limit); the small model has 1 of them right",
        "foreign requests caught: 9 of 40 open-ended requests, 22.5 % [12.3, 37.5]; of the others 31 are answered "
        "without a promise",
        "by the gate alone: words — consider it (routing.small)",
    ]


def test_what_was_left_out_and_how_long_the_others_took_is_told(run_folder: RunFolder) -> None:
    left_out = {"tuned": "about 9 minutes, 40 seconds were left"}
    fitted = FittedCandidates(ladder=("tuned", "small"), fitted=("small",), minutes={"small": 4.5}, left_out=left_out)
    fitted.save(run_folder.path / FITTED)
    outcome = summarize_run(FILE, finished(run_folder, wrong={0}))
    assert outcome.minutes == {"small": 4.5}
    assert "tuned left out: about 9 minutes, 40 seconds were left" in format_summary(outcome).splitlines()


def test_before_anything_is_promoted_the_outcome_says_what_there_is(run_folder: RunFolder) -> None:
    outcome = summarize_run(FILE, run_folder)
    assert (outcome.promoted, outcome.certificate) == (None, None)
    assert list(outcome.paths) == ["large", "small"]
    assert (outcome.paths["large"].model, outcome.paths["large"].share) == ("large-1", 1.0)
    assert outcome.report == str(run_folder.path / "report.html")


def test_where_nothing_goes_live_nothing_is_promoted_and_no_certificate_counts(run_folder: RunFolder) -> None:
    made = finished(run_folder, wrong={0})
    Outcome(kind="keep the large model", why="too slow", large=True).save(made.path / "outcome.json")
    lines = format_summary(summarize_run(FILE, made)).splitlines()
    assert "Keep the large model: too slow." in lines
    assert "gate FAIL · a certificate was issued, and nothing goes live with it" in lines
    assert "@champion" not in "".join(lines)


LARGE = {"large": {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "big"}}}


def project(folder: Path, **settings: Any) -> Project:
    rows = [{"text": f"it's number {i}", "label": ("card", "fee")[i % 2]} for i in range(60)]
    return task_of(folder, {"train": rows}, ladder=["words", "encoder"], **settings)


def missed(name: str, share: int, *, more_rows: int | None) -> CheckResult:
    """A check of 0.8 that `share` of 20 rows failed to show."""
    estimate = wilson(share, 20)
    return CheckResult(
        name=f"{name}_at_least",
        threshold=0.8,
        requirement=f"{name} at least 0.8",
        measured=f"{share / 20:.2f}",
        passed=False,
        advice="do something",
        estimate=estimate,
        more_rows=more_rows,
        chance=0.7 if more_rows else 0.02,
    )


LIVE = Outcome(
    kind="small alone",
    candidate="words",
    title="words + linear",
    share_small=wilson(20, 20),
    share_promised=wilson(12, 20),
    promise="at most 5 % of kept answers wrong (95 %)",
    model="main.default.desk",
    version=1,
    alias="champion",
    gate="passed",
)
NEEDED = LabelsNeeded(n_data_rows=75, chance=0.75, files={"train.jsonl": 75})
IN_WORDS = "about 75 more rows in train.jsonl (chance 75 %)"


def test_what_is_live_is_served_and_asked_a_row_of_the_task(tmp_path: Path) -> None:
    serve, ask = after_outcome(project(tmp_path, **LARGE), LIVE, task="desk")
    assert serve.command == "smallfirst serve desk"
    assert serve.what.endswith("answers every request, 60 % [38.7, 78.1] under the promise")
    recorded = project(tmp_path, large={"recorded": "answers.jsonl"})
    assert next(after_outcome(recorded, LIVE, task="desk")).command == "smallfirst serve desk --replay-large"
    body = json.loads(shlex.split(ask.command)[-1])
    assert body["model"] == "desk"
    assert body["messages"][-1]["content"].startswith("it's number ")  # quoted for the shell


def test_without_a_promise_it_is_served_as_well_and_rows_are_asked_for(tmp_path: Path) -> None:
    without = {"promise": "", "share_promised": None}
    live = LIVE.model_copy(update={**without, "labels_needed": NEEDED})
    serve, _, label = after_outcome(project(tmp_path), live, task="desk")
    assert (serve.command, serve.what.endswith("without a promise")) == ("smallfirst serve desk", True)
    assert label.what == f"to have a promise about single answers, label {IN_WORDS}, then: smallfirst run desk"
    hopeless = LIVE.model_copy(update={**without, "why": "even 9,000 more would not do"})
    *_, last = after_outcome(project(tmp_path), hopeless, task="desk")
    assert last.what.endswith("likely to give a promise: even 9,000 more would not do")


def test_the_bar_that_is_furthest_off_is_named_and_which_rows_help(tmp_path: Path) -> None:
    checks = missed("macro_f1", 15, more_rows=None), missed("accuracy", 9, more_rows=None)
    gate = GateVerdicts(verdicts=(verdict("words", *checks),), winner=None)
    Outcome(kind="cannot be told yet", labels_needed=NEEDED).save(tmp_path / "outcome.json")
    rows, label, *_ = after_gate(project(tmp_path), RunFolder(tmp_path), gate, task="desk")
    assert rows.what == f"label {IN_WORDS}, then: smallfirst run desk"
    assert "furthest off is accuracy at least 0.8, measured 0.45" in label.what
    assert "Do something." in label.what


def test_another_candidate_that_passes_is_offered(tmp_path: Path) -> None:
    named = project(tmp_path, routing={"small": "encoder"}, gate={"accuracy_at_least": 0.8})
    gate = GateVerdicts(
        verdicts=(verdict("words", PASSED), verdict("encoder", missed("accuracy", 9, more_rows=None))), winner="words"
    )
    (step,) = after_gate(named, RunFolder(tmp_path), gate, task="desk")
    assert step.command == "smallfirst promote desk --candidate words"


def test_errors_that_leave_something_behind_are_resumed_and_others_speak_for_themselves(tmp_path: Path) -> None:
    ready = project(tmp_path, **LARGE)
    for error in (Unavailable("down"), KeyboardInterrupt(), TrainingError("failed"), DiskFull("full")):
        assert next_steps(ready, None, error, task="desk")[0].command == "smallfirst run desk --resume"
    assert next_steps(None, None, DataError("bad"), task="desk")[0].command == "smallfirst check desk"
    assert next_steps(None, None, ConfigError("bad"), task="desk") == ()
