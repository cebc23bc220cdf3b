"""A challenger replaces the champion if it passes the gate and wins by the declared rule, and otherwise never."""

import json
from pathlib import Path

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.preflight import write_rows, write_task
from scipy import stats

from smallfirst.base.errors import GateFailed, RegistryError, StageMissing
from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.path.challenge import COMPARISON_LOG, beats
from smallfirst.path.project.task_file import read_task_file
from smallfirst.path.run import try_run
from smallfirst.path.summary import RunSummary
from smallfirst.registry import versions
from smallfirst.routing.policies import CHALLENGER


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


def rows(frames: tuple[str, ...], places: tuple[int, ...]) -> list[dict[str, str]]:
    return [
        {"text": frame.replace("{}", nouns[i]), "label": label}
        for frame in frames
        for i in places
        for label, nouns in NOUNS.items()
    ]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task whose rows show one noun of each label, while three are asked about."""
    parts = {"train": rows(TRAIN, (0,)), "validation": rows(CALIBRATION, (0, 1, 2)), "test": rows(TEST, (0, 1, 2))}
    settings = {"ladder": ["words"], "gate": {"accuracy_at_least": 0.05}, "register_to": "main.tests.toy"}
    write_task(tmp_path, parts, name="toy", **settings)
    return tmp_path


def ran(task: Path, *harvested: str, challenge: bool = True) -> tuple[RunSummary, BaseException | None]:
    settings = json.loads((task / "task.yaml").read_text())
    settings["data"]["harvested"] = list(harvested)
    (task / "task.yaml").write_text(json.dumps(settings))
    quiet = Progress(quiet=True)
    return try_run(read_task_file(task), progress=quiet, despite_check=True, challenge=challenge)


def aliases() -> dict[str, int]:
    return {alias: v.version for v in versions.list_versions("main.tests.toy") for alias in v.aliases}


def test_a_challenge_that_loses_changes_nothing_and_one_that_wins_goes_live_certified(task: Path) -> None:
    (task / "useless.jsonl").write_text(json.dumps({"text": "zebra zebra", "label": "lost_pin"}) + "\n")
    _, error = ran(task)
    assert isinstance(error, RegistryError)
    assert "no model is registered" in str(error)
    first, error = ran(task, challenge=False)
    assert error is None
    lost, error = ran(task, "useless.jsonl")
    assert isinstance(error, GateFailed)
    why = "version 1 stays champion, and version 2 is challenger: not shown more accurate than the champion: "
    assert error.args[0].startswith(why)
    assert aliases() == {"champion": 1, CHALLENGER: 2}
    assert Path(lost.report).exists()
    assert lost.promoted is None

    write_rows(task / "telling.jsonl", rows(TRAIN, (1, 2)))
    won, error = ran(task, "telling.jsonl")
    assert error is None
    assert aliases() == {"previous": 1, "champion": 3, CHALLENGER: 2}
    assert versions.read_attachment("main.tests.toy", 3, "certificate.json")
    assert won.promoted.version == 3
    log = json.loads(versions.read_attachment("main.tests.toy", 1, COMPARISON_LOG) or b"")
    assert log == [Path(one.report).parent.name for one in (lost, won)]
    assert first.report not in (lost.report, won.report)

    write_rows(task / "test.jsonl", rows(TEST[1:], (0, 1, 2)))
    _, error = ran(task, "telling.jsonl")
    assert isinstance(error, StageMissing)
    assert "not measured on the current test rows" in str(error)
