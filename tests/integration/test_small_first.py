"""A task whose candidate misses its gate goes live all the same, for the requests that its certificate covers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from smallfirst.base.errors import GateFailed
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.base.sync import run_sync
from smallfirst.deployment import service
from smallfirst.interfaces.cli.main import main
from smallfirst.ledger.ledger import Ledger
from smallfirst.measuring.outcome import Outcome
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import RecordedAnswer, RecordingHeader, request_key
from smallfirst.path import run as pipeline
from smallfirst.path.plans.joined_rows import LOOKS
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import OUTCOME, RunFolder
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.summary import format_summary
from smallfirst.registry import versions

LABELS = ("card", "money")
N = {"train": 160, "validation": 300, "test": 120}


def text_and_label(name: str, i: int) -> tuple[str, str]:
    """Two of three requests are plain; the others give no clue, and their label follows chance."""
    draw = random.Random(f"{name} {i}")
    label = draw.choice(LABELS)
    talk = " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(6))
    return (f"{talk} my {label} is gone" if i % 3 else f"{talk} that matter"), label


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    for name, n in N.items():
        rows = [dict(zip(("text", "label"), text_and_label(name, i), strict=True)) for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write(tmp_path, max_error=0.05)
    return tmp_path


def write(folder: Path, **guarantee: float) -> TaskFile:
    settings = {
        "name": "desk",
        "ladder": ["words"],
        "data": {name: f"{name}.jsonl" for name in N},
        "gate": {"accuracy_at_least": 0.95},
        "routing": {"guarantee": guarantee},
    }
    (folder / "task.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return read_task_file(folder)


def test_what_is_certified_goes_live_and_the_rest_is_left_to_a_person(desk: Path) -> None:
    summary = pipeline.run(desk, progress=Progress(quiet=True))
    assert summary.outcome is not None
    assert summary.outcome.kind == "small first"
    share = summary.outcome.share_small
    assert share is not None
    assert 0.5 < share.value < 0.8  # the plain requests are two of three
    assert share.n == N["test"]
    assert summary.promoted is not None
    assert summary.promoted.plan == "small first"
    lines = format_summary(summary)
    assert summary.outcome.sentence in lines
    assert "the rest goes to a person" in summary.outcome.sentence
    assert "gate PASS" in lines
    version = versions.resolve(f"{read_task_file(desk).register_to}@champion")
    assert json.loads(version.tags["verdict"])["plan"] == "small first"

    ledger = Ledger(home() / "ledger.db")
    deployed = service.deploy([read_task_file(desk)], ledger)
    answers = [run_sync(deployed.models["desk"].complete(Request.ask(text_and_label("live", i)[0]))) for i in range(30)]
    run_sync(deployed.models["desk"].aclose())
    ledger.close()
    routes = [answer.route for answer in answers if answer.route]
    assert {route.stage for route in routes if not route.certified} <= {"person", "out_of_scope"}
    assert 15 <= sum(route.certified for route in routes) < 30


def test_the_single_verbs_do_the_same_and_what_is_not_proven_ends_with_3(desk: Path) -> None:
    assert pipeline_until_gate(desk) == 3
    ran = CliRunner().invoke(main, ["calibrate", str(desk)])
    assert ran.exit_code == 0, ran.output
    assert "words first: pass" in ran.output
    assert f"smallfirst promote {desk}" in ran.output
    assert CliRunner().invoke(main, ["promote", str(desk)]).exit_code == 0
    run_folder = RunFolder.latest("desk")
    assert run_folder.promoted().plan == "small first"
    looks = (run_folder.path.parent / LOOKS).read_text()
    assert CliRunner().invoke(main, ["calibrate", str(desk)]).exit_code == 0
    assert (run_folder.path.parent / LOOKS).read_text() == looks  # the same certificate from the same answers


def pipeline_until_gate(desk: Path) -> int:
    for verb in ("train", "evaluate"):
        assert CliRunner().invoke(main, [verb, str(desk)]).exit_code == 0
    return CliRunner().invoke(main, ["gate", str(desk)]).exit_code


def test_a_promise_that_no_rows_show_promotes_nothing_and_says_which_rows_would(desk: Path) -> None:
    write(desk, max_error=0.012)  # takes 306 kept rows without an error
    with pytest.raises(GateFailed, match="Cannot be told yet: label") as refused:
        pipeline.run(desk, progress=Progress(quiet=True))
    outcome = RunFolder.latest("desk").find(Outcome, OUTCOME)
    assert outcome is not None
    assert (outcome.kind, outcome.share_small) == ("cannot be told yet", None)
    assert outcome.labels_needed is not None
    assert outcome.labels_needed.chance >= 0.5
    assert "words first: FAIL" in str(refused.value)
    assert not (RunFolder.latest("desk").path / "promoted.json").exists()


def test_where_an_error_has_a_price_a_plan_comes_before_a_candidate_alone(desk: Path) -> None:
    """Words pass a gate of 0.7 and are wrong on a sixth; a dear large model is right on all."""
    answers = [
        RecordedAnswer(
            key=request_key(Request.ask(text)),
            text=text,
            answer=label,
            prompt_tokens=50,
            completion_tokens=1,
            latency_ms=900.0,
            cost_usd=0.002,
        )
        for name in ("validation", "test")
        for text, label in (text_and_label(name, i) for i in range(N[name]))
    ]
    header = RecordingHeader(model="big", made_at="2026-11-30", smallfirst="0", n=len(answers))
    lines = [json.dumps({"recorded": header.model_dump(mode="json")}), *(one.model_dump_json() for one in answers)]
    (desk / "large.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for price, plan in ((1.0, "small first"), (0.001, "small alone")):
        settings = json.loads((desk / "task.yaml").read_text(encoding="utf-8")) | {
            "gate": {"accuracy_at_least": 0.7},
            "large": {"recorded": "large.jsonl"},
            "routing": {"domain": "off", "usd_per_wrong_answer": price},
        }
        (desk / "task.yaml").write_text(json.dumps(settings), encoding="utf-8")
        summary = pipeline.run(desk, progress=Progress(quiet=True))
        assert summary.promoted is not None
        assert summary.promoted.plan == plan
        assert summary.gate.winner == "words"  # it passed by itself
        assert summary.outcome is not None
        assert [trial.passed for trial in summary.gate.trials] == ([True] if plan == "small first" else [])


def test_test_rows_of_one_file_certify_once_and_a_later_run_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    rows = [dict(zip(("text", "label"), text_and_label("all", i), strict=True)) for i in range(580)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = {"name": "desk", "ladder": ["words"], "data": {"train": "rows.jsonl"}, "gate": {"accuracy_at_least": 0.6}}
    (tmp_path / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    project = Project.read(read_task_file(tmp_path), Progress(quiet=True))
    n, n_test = len(project.rows.calibration), len(project.rows.test)
    first = pipeline.run(tmp_path, progress=Progress(quiet=True)).certificate
    assert first is not None
    assert n < first.n_labels <= n + n_test
    assert any("are test rows, which the gate reads too" in one for one in first.limits_of_validity)
    run_folder = RunFolder.latest("desk")
    assert pipeline.calibrate_stage(project, run_folder).model_dump() == first.model_dump()
    later = pipeline.run(tmp_path, progress=Progress(quiet=True)).certificate
    assert later is not None
    assert later.n_labels == n
    assert any("an earlier run has read them" in one for one in later.limits_of_validity)
