"""Locks end with their holder, and go from parent to child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.jobs import file_locks as locks


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    held = locks.hold(path)
    assert held is not None
    assert locks.is_held(path)
    assert locks.hold(path) is None
    os.close(held)
    assert not locks.is_held(path)


def test_a_child_that_inherits_a_lock_keeps_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = locks.hold(path)
    assert held is not None
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(held,))
    os.close(held)
    assert locks.is_held(path)
    child.kill()
    child.wait()
    assert not locks.is_held(path)


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        locks.hold(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_machine_has_one_place_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    first = locks.take_slot()
    assert first is not None
    assert locks.take_slot() is None
    monkeypatch.setenv(locks.AT_ONCE, "2")
    second = locks.take_slot()
    assert second is not None
    assert locks.take_slot() is None
    os.close(first)
    os.close(second)
    for wrong in ("none", "0", "-1"):
        monkeypatch.setenv(locks.AT_ONCE, wrong)
        with pytest.raises(ConfigError, match=f'SMALLFIRST_JOBS_AT_ONCE is "{wrong}"'):
            locks.take_slot()
