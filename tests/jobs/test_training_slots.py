"""Training slots of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.jobs import training_slots


def test_a_machine_has_one_slot_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_slots.tempfile, "gettempdir", lambda: str(tmp_path))
    first = training_slots.take_slot()
    assert first is not None
    assert training_slots.take_slot() is None
    monkeypatch.setenv(training_slots.AT_ONCE, "2")
    second = training_slots.take_slot()
    assert second is not None
    assert training_slots.take_slot() is None
    os.close(first)
    os.close(second)
    for wrong in ("none", "0", "-1"):
        monkeypatch.setenv(training_slots.AT_ONCE, wrong)
        with pytest.raises(ConfigError, match=f'SMALLFIRST_JOBS_AT_ONCE is "{wrong}"'):
            training_slots.take_slot()
