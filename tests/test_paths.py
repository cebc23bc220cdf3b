"""Where the state folder is, and what happens if it cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.paths import artifact_folder, home, tracking_uri


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALLFIRST_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("mark", ["task.yaml", "pyproject.toml", ".git"])
def test_the_state_folder_is_beside_the_nearest_project_mark(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.yaml").touch()  # a project further up must not win
    project = tmp_path / "inner"
    (project / "deep" / "er").mkdir(parents=True)
    (project / mark).touch()
    monkeypatch.chdir(project / "deep" / "er")
    assert home() == project / ".smallfirst"


def test_it_is_created_for_its_owner_only_and_kept_out_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "a" / "state"))
    folder = home()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"


def test_a_relative_setting_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALLFIRST_HOME", "state")
    assert home() == tmp_path / "state"


def test_the_store_is_a_sqlite_file_in_the_state_folder_unless_mlflow_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_folder() == tmp_path / "artifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


def test_a_path_that_mlflow_would_misread_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "100%20"))
    with pytest.raises(ConfigError, match="cannot be in a path with % or"):
        tracking_uri()


def test_a_file_in_its_place_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").touch()
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    with pytest.raises(ConfigError) as caught:
        home()
    assert str(caught.value) == (
        f"the state folder {tmp_path}/state cannot be used: it is a file, not a folder\n"
        "  next: set SMALLFIRST_HOME to a folder you can write, or mend the permissions"
    )


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "file" / "state"))
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        home()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no permission to write"):
        home()
