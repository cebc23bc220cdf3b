"""A challenger replaces the champion if it passes the gate and wins by the declared rule, and otherwise never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of
from scipy import stats

from smallfirst.base.errors import DataError, RegistryError, StageMissing
from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.path import run as pipeline
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import read_task_file
from smallfirst.registry import versions
from smallfirst.routing.policies import CHALLENGER
from smallfirst.traffic.challenge import COMPARISON_LOG, RESULT, ChallengeResult, beats, challenge


def evaluation(flags: list[bool]) -> Evaluation:
    return evaluation_of([evaluated_row(str(i), "a", "a", correct=ok) for i, ok in enumerate(flags)])


def duel(only_ours: int, only_theirs: int, n: int, *, look: int = 1) -> tuple[bool, Estimate]:
    ours = evaluation([i >= only_theirs for i in range(n)])
    theirs = evaluation([not only_theirs <= i < only_theirs + only_ours for i in range(n)])
    return beats(ours, theirs, look)


def test_a_better_challenger_wins_and_an_equal_or_worse_one_does_not() -> None:
    won, difference = duel(20, 2, 100)
    assert won
    assert difference.value == pytest.approx(0.18)
    assert not duel(6, 2, 100)[0]
    assert not duel(0, 0, 1000)[0]
    assert not duel(2, 20, 100)[0]
    assert not beats(evaluation([True]), evaluation([]), 1)[0]  # no row that both answered


def test_each_challenge_has_to_show_more_than_the_one_before() -> None:
    z = stats.norm.ppf(0.5 + (1 - 0.05 / 2) / 2)
    assert duel(0, 0, 1000)[1].low == pytest.approx(-(z**2) / (1000 + z**2), abs=1e-6)  # Tango's without disagreement
    assert [duel(14, 3, 100, look=k)[0] for k in (1, 2, 3)] == [True, True, False]
    lows = [duel(14, 3, 100, look=k)[1].low for k in range(1, 9)]
    assert lows == sorted(lows, reverse=True)


NOUNS = {
    "card_arrival": ("card", "envelope", "parcel"),
    "refund_request": ("refund", "money", "return"),
    "exchange_rate": ("exchange", "euro", "currency"),
    "lost_pin": ("pin", "code", "passcode"),
}
TRAIN = ("where is my {}", "I want to know about the {} please", "can you help with a {}", "the {} again")
CALIBRATION = ("tell me more about your {}", "hello, {} question")
TEST = ("a {} it is", "one {} more", "{} {}", "is there any {} left", "no {} for us")


def write(path: Path, frames: tuple[str, ...], places: tuple[int, ...]) -> Path:
    rows = [
        {"text": frame.replace("{}", nouns[i]), "label": label}
        for frame in frames
        for i in places
        for label, nouns in NOUNS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A task whose rows show one noun of each label, while three are asked about."""
    write(tmp_path / "train.jsonl", TRAIN, (0,))
    write(tmp_path / "validation.jsonl", CALIBRATION, (0, 1, 2))
    write(tmp_path / "test.jsonl", TEST, (0, 1, 2))
    file = {
        "name": "toy",
        "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        "ladder": ["words"],
        "gate": {"accuracy_at_least": 0.05},
        "register_to": "main.tests.toy",
    }
    (tmp_path / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


def make_champion(project: Project) -> RunFolder:
    run_folder = pipeline.train_stage(project)
    pipeline.evaluate_stage(project, run_folder)
    pipeline.gate_stage(project, run_folder)
    pipeline.promote_stage(project, run_folder)
    pipeline.calibrate_stage(project, run_folder)
    return run_folder


def aliases() -> dict[str, int]:
    return {alias: v.version for v in versions.list_versions("main.tests.toy") for alias in v.aliases}


def test_a_challenge_that_loses_changes_nothing_and_one_that_wins_goes_live_certified(
    project: Project, tmp_path: Path
) -> None:
    useless = tmp_path / "useless.jsonl"
    useless.write_text(json.dumps({"text": "zebra zebra", "label": "lost_pin"}) + "\n", encoding="utf-8")
    with pytest.raises(RegistryError, match="no model is registered"):
        challenge(project, useless)
    make_champion(project)
    lost = challenge(project, useless)
    assert not lost.won
    assert lost.in_words[0].startswith("version 1 stays champion: not shown more accurate than the champion: ")
    assert aliases() == {"champion": 1, CHALLENGER: 2}
    run = RunFolder.latest("toy", lost.run)
    assert ChallengeResult.load(run.path / RESULT) == lost
    assert (run.path / "report.html").exists()
    assert not (run.path / "promoted.json").exists()

    telling = write(tmp_path / "telling.jsonl", TRAIN, (1, 2))
    settings = json.loads((tmp_path / "task.yaml").read_text())
    settings.pop("gate")
    (tmp_path / "task.yaml").write_text(json.dumps(settings), encoding="utf-8")
    refused = challenge(Project.read(read_task_file(tmp_path), Progress(quiet=True)), telling)
    assert refused.verdict.passed
    assert (refused.version, refused.difference, refused.won) == (None, None, False)
    assert "gate: {accuracy_at_least: 0.8}" in refused.why  # the default gate lets nobody go live
    assert aliases() == {"champion": 1, CHALLENGER: 2}

    won = challenge(project, telling)
    assert won.won
    assert won.difference is not None
    assert won.difference.value > 0.3
    assert "challenge 2 of this champion" in won.why
    assert aliases() == {"previous": 1, "champion": 3, CHALLENGER: 2}
    assert versions.read_attachment("main.tests.toy", 3, "certificate.json")
    assert RunFolder.latest("toy", won.run).promoted().version == 3
    log = json.loads(versions.read_attachment("main.tests.toy", 1, COMPARISON_LOG) or b"")
    assert log == [lost.run, won.run]

    known = write(tmp_path / "known.jsonl", TRAIN, (0,))
    with pytest.raises(DataError, match="all its rows are training rows already"):
        challenge(project, known)
    fewer = project.rows.model_copy(update={"test": project.rows.test.subset("test", project.rows.test.examples[1:])})
    with pytest.raises(StageMissing, match=r"not measured on the current test rows(?s:.*)evaluate task.yaml --run"):
        challenge(project._replace(rows=fewer), telling)
