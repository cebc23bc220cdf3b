"""The last lines of a run: the table a person reads, drawn from what the stages left."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.certificates import certificate as make_certificate
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import StageMissing
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.outcome import Outcome
from smallfirst.measuring.verdict import CheckResult, Verdict
from smallfirst.path.project.run_folder import (
    FITTED,
    OPEN_ENDED,
    FittedCandidates,
    GateVerdicts,
    OpenEndedRouting,
    Promotion,
    RunFolder,
)
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.summary import format_summary, summarize_run

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


def verdict(candidate: str, passed: bool) -> Verdict:
    line = CheckResult(requirement="accuracy at least 0.8", measured="0.9", passed=passed)
    return Verdict(candidate=candidate, checks=(line,), passed=passed, evaluation_fingerprint="e")


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    made = RunFolder.new("desk")
    made.save_evaluation(measured("large", {0}, cost=1.5, rate=None))
    made.save_evaluation(measured("small", {0, 1, 2}, cost=0.0012))
    GateVerdicts(verdicts=(verdict("words", True), verdict("small", True)), winner="words").save(
        made.path / "verdicts.json"
    )
    return made


def finished(made: RunFolder, *, wrong: set[int], below: str = "escalate") -> RunFolder:
    made.save_evaluation(measured("routed", wrong, kept=15, cost=0.4))
    Promotion(name="main.default.desk", version=3, candidate="small", at="2025-01-02T03:04:05+00:00").save(
        made.path / "promoted.json"
    )
    OpenEndedRouting(n_requests=40, n_to_large=39).save(made.path / OPEN_ENDED)
    make_certificate(0.4, below=below).save(made.path / "certificate.json")
    OUTCOME.save(made.path / "outcome.json")
    return made


def test_the_table_shows_every_measured_path_and_what_was_decided(run_folder: RunFolder) -> None:
    outcome = summarize_run(FILE, finished(run_folder, wrong={0, 19}))
    assert format_summary(outcome).splitlines() == [
        "                        accuracy                 cost / 1k requests         p50   share",
        "large (recorded)        0.950 [0.764, 0.991]     $1.50                     4 ms   100 %",
        "fine-tuned small model  0.850 [0.640, 0.948]     $0.0012                   4 ms   100 %",
        "routed                  0.900 [0.699, 0.972]     $0.40                     4 ms   75 % small",
        OUTCOME.sentence,
        "gate PASS · promoted main.default.desk version 3 @champion · certificate: shown",
        "open-ended requests sent to the large model: 39 of 40",
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


def test_before_it_is_decided_the_summary_decides_nothing(run_folder: RunFolder) -> None:
    assert format_summary(summarize_run(FILE, run_folder)).splitlines()[-1] == "gate not decided"


def test_an_outcome_is_read_back_as_it_was_saved(run_folder: RunFolder, tmp_path: Path) -> None:
    outcome = summarize_run(FILE, finished(run_folder, wrong={0}))
    assert type(outcome).load(outcome.save(tmp_path / "outcome.json")) == outcome


def test_the_latest_finished_run_is_found_and_a_named_one_too(run_folder: RunFolder) -> None:
    with pytest.raises(StageMissing) as caught:
        RunFolder.latest("desk")
    assert str(caught.value) == "desk has no finished run\n  next: smallfirst train task.yaml"
    for name in ("20250101-000000-aa", "20250102-000000-aa", "20250103-000000-aa"):
        (run_folder.path.parent / name).mkdir()
    for name in ("20250101-000000-aa", "20250102-000000-aa"):  # the third was never finished
        (run_folder.path.parent / name / "run.json").write_text("{}")
    assert RunFolder.latest("desk").path.name == "20250102-000000-aa"
    assert RunFolder.latest("desk", "20250101-000000-aa").path.name == "20250101-000000-aa"
    with pytest.raises(StageMissing, match='desk has no finished run "20250103-000000-aa"'):
        RunFolder.latest("desk", "20250103-000000-aa")


def test_a_stage_whose_forerunner_is_missing_names_the_command(run_folder: RunFolder) -> None:
    with pytest.raises(StageMissing) as caught:
        run_folder.certificate()
    assert str(caught.value) == (
        f"certificate.json is missing in run {run_folder.path.name}\n  next: smallfirst calibrate task.yaml"
    )
    with pytest.raises(StageMissing, match="the gate has no verdict on encoder"):
        run_folder.verdicts().of("encoder")
    with pytest.raises(StageMissing, match="nothing has been evaluated yet"):
        run_folder.evaluations("calibration")


def test_evaluations_come_back_from_the_smallest_to_the_large(run_folder: RunFolder) -> None:
    run_folder.save_evaluation(measured("words", {0}, cost=0.0001))
    assert [found.candidate for found in run_folder.evaluations("test")] == ["words", "small", "large"]
    assert run_folder.evaluation("small", "test") == measured("small", {0, 1, 2}, cost=0.0012)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("words", "alone: words (chosen on other rows, confirmed on test rows) —"),
        (
            "small",
            "alone: words (in place of small, which is clearly right less often on test rows and costs no less) —",
        ),
        (None, "alone: words —"),
    ],
)
def test_how_the_candidate_was_found_is_said(run_folder: RunFolder, chosen: str | None, said: str) -> None:
    found = run_folder.verdicts().model_copy(update={"chosen": chosen})
    found.save(run_folder.path / "verdicts.json")
    assert said in format_summary(summarize_run(FILE, finished(run_folder, wrong={0})))
