"""`smallfirst plan`: from an evaluation, from a measurement, and measuring what is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.cli import call, desk_folder, failed, measured  # noqa: F401
from fixtures.endpoints import large_server

from smallfirst.capacity.measurement import Measurement
from smallfirst.paths import state_of
from smallfirst.project.run_folder import RunFolder

WANTED = ("--requests-per-month", "3e6", "--p95-ms", "300")


@pytest.fixture
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulation and load are short: what they find is tested elsewhere."""
    from smallfirst.capacity.measurement import measure
    from smallfirst.capacity.plan import tried

    monkeypatch.setitem(tried.__kwdefaults__, "n_requests", 200)
    monkeypatch.setitem(measure.__kwdefaults__, "levels", (1, 2))


@pytest.fixture
def evaluated_folder(desk_folder: Path) -> Path:  # noqa: F811
    """A task with a run whose small model was not timed."""
    with state_of(desk_folder):
        run = RunFolder.new("desk")
        (run.path / "run.json").write_text("{}")
        run.save_evaluation(measured(1))
    return desk_folder


@pytest.mark.usefixtures("little_work")
def test_from_the_evaluation_or_a_measurement(evaluated_folder: Path) -> None:
    assert "--requests-per-month and --p95-ms" in failed(call("plan", evaluated_folder), 2)
    missing = failed(call("plan", evaluated_folder, *WANTED), 2)
    assert f"smallfirst plan {evaluated_folder} --measure" in missing
    with state_of(evaluated_folder):
        run = RunFolder.latest("desk")
        timed = measured(1).model_copy(update={"probes_ms": (5.0,) * 20, "requests_per_s": 400.0})
        run.save_evaluation(timed)
    shown = call("plan", evaluated_folder, *WANTED)
    assert shown.exit_code == 0, shown.output
    assert "3,000,000 requests a month, 3.5/s in the busiest hour" in shown.stdout
    assert "without HTTP, routing and ledger" in shown.stdout
    assert "<- chosen" in shown.stdout
    with large_server() as server:
        done = call("plan", evaluated_folder, "--measure", "--url", f"{server.url}", "--seconds", "0.1")
    assert done.exit_code == 0, done.output
    path = evaluated_folder / ".smallfirst" / "capacity-desk.small.json"
    assert Measurement.load(path).model == "desk"
    assert {body["model"] for body in server.asked} == {"desk"}
    told = json.loads(call("plan", evaluated_folder, *WANTED, "--json", "--peak", "2", "--burst", "0").stdout)
    assert told["demand"]["peak"] == 2
    assert "answers over HTTP" in "".join(told["assumptions"])


def test_a_machine_of_no_price_is_not_measured(evaluated_folder: Path) -> None:
    message = failed(call("plan", evaluated_folder, "--measure", "--machine", "gpu"), 2)
    assert 'no machine "gpu" under prices.machines' in message
