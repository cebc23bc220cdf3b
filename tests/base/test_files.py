"""Atomic writes between threads, and locks between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.waiting import beside

from smallfirst.base.files import is_locked, locked, try_lock, write_atomically


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"one")
    assert write_atomically(path, b"two") == path
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_the_same_file_never_mix(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([i]) * 50_000 for i in range(8)]
    with beside(write_atomically, *((path, content) for content in contents * 4)):
        pass
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    assert is_locked(path)
    os.close(held)
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
    assert not is_locked(path)


def test_a_child_inherits_the_lock_and_its_death_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = try_lock(path)
    assert held is not None
    child = subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[held], stdin=subprocess.PIPE)
    os.close(held)
    assert is_locked(path)
    child.kill()
    child.wait()
    assert not is_locked(path)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        try_lock(tmp_path / "lock")
