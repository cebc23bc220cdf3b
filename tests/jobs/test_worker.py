"""The process of a job: its training slot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.jobs import worker


def test_a_machine_has_one_slot_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    first = worker.take_slot()
    assert first is not None
    assert worker.take_slot() is None
    monkeypatch.setenv(worker.AT_ONCE, "2")
    second = worker.take_slot()
    assert second is not None
    assert worker.take_slot() is None
    os.close(first)
    os.close(second)
    for wrong in ("none", "0", "-1"):
        monkeypatch.setenv(worker.AT_ONCE, wrong)
        with pytest.raises(ConfigError, match=f'SMALLFIRST_JOBS_AT_ONCE is "{wrong}"'):
            worker.take_slot()
