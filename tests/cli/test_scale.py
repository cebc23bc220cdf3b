"""`smallfirst plan`: from an evaluation, or from a rate that is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.cli import call, desk_folder, failed, measured  # noqa: F401

from smallfirst.paths import state_of
from smallfirst.project.run_folder import RunFolder


@pytest.fixture
def evaluated_folder(desk_folder: Path) -> Path:  # noqa: F811
    """A task with a run whose small model was not timed."""
    with state_of(desk_folder):
        run = RunFolder.new("desk")
        (run.path / "run.json").write_text("{}")
        run.save_evaluation(measured(1))
    return desk_folder


def test_the_rate_is_the_evaluations_or_the_one_given(evaluated_folder: Path) -> None:
    missing = failed(call("plan", evaluated_folder), 2)
    assert "no rate of this task's model is known" in missing
    assert "--requests-per-s" in missing
    told = json.loads(call("plan", evaluated_folder, "--requests-per-s", "0.5", "--json").stdout)
    assert (told["requests_per_month"], told["source"]) == (1_000_000, "--requests-per-s")
    assert told["machines"] == 5  # 0.38 a second, 1.14 in the busiest hour, 2.28 with the headroom
    with state_of(evaluated_folder):
        run = RunFolder.latest("desk")
        run.save_evaluation(measured(1).model_copy(update={"requests_per_s": 400.0}))
    shown = call("plan", evaluated_folder, "--requests-per-month", "3e6")
    assert shown.exit_code == 0, shown.output
    assert "3,000,000 requests a month, 3.42/s in the busiest hour (3 times the mean rate)" in shown.stdout
    assert 'one answers 400/s (the last evaluation of "small", without HTTP and ledger)' in shown.stdout


def test_a_machine_of_no_price_is_named(evaluated_folder: Path) -> None:
    message = failed(call("plan", evaluated_folder, "--machine", "gpu"), 2)
    assert 'no machine "gpu" under prices.machines' in message
