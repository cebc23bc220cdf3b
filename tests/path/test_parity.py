"""What is served must answer as what was measured: equal files pass, every kind of skew is blocked with its rows."""

import asyncio
import json

import pytest
from click.testing import CliRunner
from fixtures.deployment import measured
from fixtures.server import SayingModel

from smallfirst.base.errors import StageMissing
from smallfirst.interfaces.cli.main import CommandGroup
from smallfirst.interfaces.cli.path import parity
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Request
from smallfirst.path.parity import ParityFailed, ParityResult, ParityRow, check_parity, parity_rows, parity_stage
from smallfirst.registry import versions
from smallfirst.serving.app import Address, serve_on_loopback
from smallfirst.tasks.classify import Classify


def kept(version: versions.ModelVersion) -> ParityResult:
    raw = versions.read_attachment(version.name, version.version, "parity.json")
    assert raw is not None
    return ParityResult.model_validate_json(raw)


def test_equal_files_pass_and_the_record_is_kept_beside_the_version(desk) -> None:
    project, run_folder = measured(desk)
    version = desk.enter(run_folder.path / "model", run=run_folder.path.name)
    found = parity_stage(project, run_folder, version, "small")
    n = len(project.rows.calibration)
    assert n > 10
    assert (found.n, found.n_same, found.n_ties, found.passed, found.version) == (n, n, 0, True, version.version)
    assert found.largest_gap is not None
    assert found.largest_gap < 0.05
    assert kept(version) == found
    assert found.in_words[0].startswith(f"toy-small: {n} of {n} rows answered as measured, confidences at most 0.0")


def test_labels_in_another_order_are_blocked_with_every_row(desk) -> None:
    project, run_folder = measured(desk)
    version = desk.enter(desk.folder(1), run=run_folder.path.name)
    with pytest.raises(ParityFailed) as caught:
        parity_stage(project, run_folder, version, "small")
    found = kept(version)
    assert (found.n_same, found.passed) == (0, False)
    first = found.differences[0]
    labels = desk.task.labels
    assert labels.index(first.got) == (labels.index(first.expected) - 1) % 4
    assert first.text in {e.text for e in project.rows.calibration.examples}
    said = str(caught.value)
    assert f"another answer: expected {first.expected!r}, got {first.got!r}" in said
    assert first.text in said
    assert caught.value.exit_code == 3


def test_a_temperature_that_is_not_applied_is_blocked_though_every_answer_is_the_same(desk) -> None:
    project, run_folder = measured(desk, temperature=0.2)
    version = desk.enter(desk.folder(0, temperature=1.0), run=run_folder.path.name)
    with pytest.raises(ParityFailed, match="the same answer, but confidence 0"):
        parity_stage(project, run_folder, version, "small")
    found = kept(version)
    assert all(row.expected == row.got for row in found.differences)
    assert found.largest_gap is not None
    assert found.largest_gap > 0.05


def test_another_prompt_is_blocked(desk) -> None:
    project, run_folder = measured(desk, temperature=0.02)  # so that small differences show
    version = desk.enter(desk.folder(0, temperature=0.02, max_tokens=4), run=run_folder.path.name)
    with pytest.raises(ParityFailed):
        parity_stage(project, run_folder, version, "small")


def rows(*answers: str, confidence: float | None = None) -> list[ParityRow]:
    asked = Request.ask("a").messages
    return [ParityRow(f"k{i}", asked, answer, confidence) for i, answer in enumerate(answers)]


TASK = Classify(name="t", labels=("left", "right", "up"))


def checked(asked: list[ParityRow], confidence: float | None = 0.41) -> ParityResult:
    """What is found of an endpoint that always says `left`, with this confidence."""
    with serve_on_loopback({"says": SayingModel("says", "left", confidence=confidence)}) as address:
        return asyncio.run(check_parity(address, "says", asked, task=TASK))


@pytest.mark.parametrize(
    ("answers", "measured_at", "served_at", "passed", "n_ties"),
    [
        (("left", "right", "left"), 0.42, 0.41, True, 1),  # shown, and does not block
        (("left", "right", "left"), 0.44, 0.41, False, 0),  # not close
        (("left", "right", "left"), 0.9, 0.9, False, 0),  # both cannot be the best
        (("left", "right", "left"), None, 0.41, False, 0),  # not measured
        (("left", "right", "left"), 0.41, None, False, 0),  # not told
        (("right", "right", *["left"] * 60), 0.41, 0.41, False, 2),  # 2 of 62 are more than 2 %
        (("right", "right", *["left"] * 98), 0.41, 0.41, True, 2),
        ((), 0.41, 0.41, False, 0),  # nothing is shown
    ],
)
def test_a_few_ties_are_shown_and_do_not_block(
    answers: tuple[str, ...], measured_at: float | None, served_at: float | None, passed: bool, n_ties: int
) -> None:
    found = checked(rows(*answers, confidence=measured_at), served_at)
    assert (found.passed, found.n_ties, found.n) == (passed, n_ties, len(answers))
    if passed and n_ties == 1:
        assert found.in_words[:2] == [
            "says: 2 of 3 rows answered as measured, confidences at most 0.0100 apart, 1 of the others ties",
            "  tie   another label, with nearly the same confidence (0.0100 apart): expected 'right', got 'left'",
        ]


def test_an_endpoint_that_refuses_or_is_not_there_differs_in_every_row() -> None:
    with serve_on_loopback({"says": (model := SayingModel("says", "left"))}) as address:
        unknown = asyncio.run(check_parity(address, "other", rows("left"), task=TASK))
        refused = asyncio.run(check_parity(Address(address.base_url, "wrong"), "says", rows("left"), task=TASK))
    assert model.closed
    gone = asyncio.run(check_parity(address, "says", rows("left"), task=TASK))
    assert unknown.differences[0].why.startswith("HTTP 404: ")
    assert refused.differences[0].why.startswith("HTTP 401: ")
    assert gone.differences[0].why == "no answer (NotConnected)"
    assert [unknown.passed, refused.passed, gone.passed] == [False, False, False]


def test_rows_are_the_same_ones_each_time_and_need_an_evaluation(desk) -> None:
    project, run_folder = measured(desk)
    some = parity_rows(project, run_folder, "small", 5)
    assert [row.key for row in some] == [row.key for row in parity_rows(project, run_folder, "small", 5)]
    assert len(some) == 5
    assert all(row.confidence is not None for row in some)
    with pytest.raises(StageMissing, match="words was not evaluated on today's calibration rows"):
        parity_rows(project, run_folder, "words")


def test_the_command_asks_a_running_endpoint_and_says_which_rows_differ(desk, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_folder = measured(desk)
    version = desk.enter(run_folder.path / "model", run=run_folder.path.name)
    versions.promote(version.name, version.version)
    main = CommandGroup(commands={"parity": parity})
    started = CliRunner().invoke(main, ["parity", str(desk.path), "--json"])
    assert (started.exit_code, json.loads(started.stdout)["passed"]) == (0, True)
    with serve_on_loopback({"skewed": load_model(desk.folder(1))}) as address:
        monkeypatch.setenv("THE_KEY", address.key)
        options = ["--url", address.base_url, "--model", "skewed", "--rows", "4", "--key-env", "THE_KEY"]
        asked = CliRunner().invoke(main, ["parity", str(desk.path), *options])
    assert asked.exit_code == 3
    assert "skewed: 0 of 4 rows answered as measured" in asked.output
    assert asked.output.count("another answer: expected ") >= 4
    wrong = CliRunner().invoke(main, ["parity", str(desk.path), "--url", "localhost:8000"])
    assert (wrong.exit_code, "is no address" in wrong.output) == (2, True)
