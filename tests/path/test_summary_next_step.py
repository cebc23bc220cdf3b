"""What to do after a run: words and commands for each outcome."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from smallfirst.base.errors import ConfigError, DataError, TrainingError, Unavailable
from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.outcome import LabelsNeeded, Outcome
from smallfirst.measuring.verdict import CheckResult, Verdict
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import GateVerdicts, RunFolder
from smallfirst.path.project.task_file import read_task_file
from smallfirst.path.summary import after_gate, after_outcome, hint_of, next_steps

PASSED = CheckResult(requirement="accuracy at least 0.8", measured="0.9", passed=True)
LARGE = {"large": {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "big"}}}


def project(folder: Path, **settings: Any) -> Project:
    rows = [{"text": f"it's number {i}", "label": ("card", "fee")[i % 2]} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"name": "desk", "data": {"train": "rows.jsonl"}, "ladder": ["words", "encoder"], **settings}
    (folder / "task.yaml").write_text(json.dumps(values))
    return Project.read(read_task_file(folder), Progress(quiet=True))


def verdict(candidate: str, *checks: CheckResult) -> Verdict:
    passed = all(check.passed for check in checks)
    return Verdict(candidate=candidate, checks=checks, passed=passed, evaluation_fingerprint="e")


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
NEEDED = LabelsNeeded(n_data_rows=75, chance=0.75, files={"rows.jsonl": 75})
IN_WORDS = "about 75 more rows in rows.jsonl (chance 75 %)"


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


def test_what_is_not_live_is_promoted_written_down_or_drafts_in_shadow(tmp_path: Path) -> None:
    ready = LIVE.model_copy(update={"alias": "", "version": None})
    (promote,) = after_outcome(project(tmp_path), ready, task="desk")
    assert promote.command == "smallfirst promote desk"
    line = "gate: {accuracy_at_least: 0.8}"
    unwritten = Outcome(kind="keep the large model", title="words + linear", gate="not written", gate_line=line)
    (written,) = after_outcome(project(tmp_path), unwritten, task="desk")
    assert written.command == "smallfirst promote desk"
    assert line in written.what
    shadow = Outcome(kind="cannot be told yet", title="words", alias="shadow", labels_needed=NEEDED, large=True)
    serve, _, label = after_outcome(project(tmp_path, **LARGE), shadow, task="desk")
    assert (serve.command, serve.what.startswith("serve it meanwhile: the large model answers")) == (
        "smallfirst serve desk",
        True,
    )
    assert label.what.startswith(f"to have it decided, label {IN_WORDS}")


def test_before_a_part_was_looked_for_no_rows_are_asked_for(tmp_path: Path) -> None:
    gate = GateVerdicts(
        verdicts=(
            verdict("words", missed("accuracy", 15, more_rows=None)),
            verdict("encoder", missed("accuracy", 17, more_rows=40)),
        ),
        winner=None,
    )
    part, why, suspects, sign = after_gate(project(tmp_path), RunFolder(tmp_path), gate, task="desk")
    assert part.command == "smallfirst calibrate desk"  # a part of the requests was not looked for yet
    assert why.what == "encoder comes nearest; furthest off is accuracy at least 0.8, measured 0.85."
    assert suspects.command == "smallfirst review desk --labels suspects.jsonl"
    assert sign.command == "smallfirst override desk --candidate encoder --by NAME --because REASON"


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
    for error in (Unavailable("down"), KeyboardInterrupt(), TrainingError("disk full")):
        assert next_steps(ready, None, error, task="desk")[0].command == "smallfirst run desk --resume"
    assert next_steps(None, None, DataError("bad"), task="desk")[0].command == "smallfirst check desk"
    assert next_steps(None, None, ConfigError("bad"), task="desk") == ()


def test_an_error_keeps_its_own_hint_before_the_steps() -> None:
    error = DataError("bad", hint="mend line 3")
    assert hint_of(error, next_steps(None, None, error)) == (
        "mend line 3\n"
        "        see what is wrong with the rows, and where:\n"
        "          smallfirst check task.yaml\n"
        "        mend them or label more, then: smallfirst run task.yaml"
    )
