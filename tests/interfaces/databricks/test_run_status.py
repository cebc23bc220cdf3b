"""RunStatus: its order, its names."""

from __future__ import annotations

from itertools import pairwise

import pytest

from smallfirst.interfaces.databricks.run_status import RunStatus

ORDER = ["UNKNOWN", "PENDING", "QUEUED", "STARTING", "RUNNING", "TERMINATING", "COMPLETED", "STOPPED", "FAILED"]


def test_statuses_are_in_the_order_of_a_run() -> None:
    statuses = [RunStatus[name] for name in ORDER]
    assert sorted(reversed(statuses)) == statuses
    for early, late in pairwise(statuses):
        assert early < late
        assert early <= late
        assert late > early
        assert late >= early
        assert early.before(late)
        assert not late.before(early)
        assert late.after(early)
        assert not early.before(early)
        assert early.before(early, inclusive=True)
        assert early.after(early, inclusive=True)
    with pytest.raises(TypeError):
        _ = RunStatus.RUNNING < "RUNNING"


def test_names_for_people_and_from_text() -> None:
    assert [status.display_name for status in (RunStatus.COMPLETED, RunStatus.FAILED)] == ["Completed", "Failed"]
    assert str(RunStatus.RUNNING) == "RUNNING"
    assert RunStatus.from_string("running") is RunStatus.RUNNING
    assert RunStatus.from_string(RunStatus.QUEUED) is RunStatus.QUEUED
    assert RunStatus.from_string("sleeping") is RunStatus.UNKNOWN


def test_a_run_ends_in_three_ways() -> None:
    assert [s.name for s in RunStatus if s.is_terminal()] == ["COMPLETED", "STOPPED", "FAILED"]
