"""Where the state folder is, and what happens if it cannot be."""

from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError, RegistryError, StageMissing
from smallfirst.base.paths import (
    artifact_folder,
    child_environment,
    home,
    state_folder,
    state_of,
    tracking_uri,
    weights_folders,
)
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.registry.versions import resolve
from smallfirst.traffic.harvest import open_ledger


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


def test_the_state_of_a_task_is_beside_it_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("tickets", "mails"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "task.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with state_of(Path("tickets")):
        assert state_folder() == tmp_path / "tickets" / ".smallfirst"
        with state_of(tmp_path / "mails"):  # several tasks in one process
            assert home() == tmp_path / "mails" / ".smallfirst"
        assert state_folder() == tmp_path / "tickets" / ".smallfirst"
    assert state_folder() == tmp_path / ".smallfirst"
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "elsewhere"))
    with state_of(Path("tickets")):
        assert state_folder() == tmp_path / "elsewhere"


def test_an_existing_state_folder_of_the_repository_is_used_but_none_from_outside_it(tmp_path: Path) -> None:
    task = tmp_path / "work" / "tasks" / "tickets"
    task.mkdir(parents=True)
    (task / "task.yaml").touch()
    (tmp_path / ".smallfirst").mkdir()
    assert state_folder(task) == task / ".smallfirst"
    (tmp_path / "work" / ".git").mkdir()
    assert state_folder(task) == task / ".smallfirst"
    (tmp_path / "work" / ".smallfirst").mkdir()
    assert state_folder(task) == tmp_path / "work" / ".smallfirst"
    (task / ".smallfirst").mkdir()
    assert state_folder(task) == task / ".smallfirst"


def test_weights_are_fetched_once_for_the_user_and_found_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tmp_path / "tickets"
    task.mkdir()
    (task / "task.yaml").touch()
    (tmp_path / ".smallfirst").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    with state_of(task):
        older = [task / ".smallfirst" / "weights", tmp_path / ".smallfirst" / "weights"]
        assert weights_folders()[:3] == [tmp_path / "caches" / "smallfirst" / "weights", *older]
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "only"))
    assert weights_folders() == [tmp_path / "only" / "weights"]


def test_looking_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(create=False) == ""
    with pytest.raises(RegistryError, match="no model is registered as main"):
        resolve("main.default.tickets@champion")
    with pytest.raises(StageMissing, match="tickets has no finished run"):
        RunFolder.latest("tickets")
    with pytest.raises(ConfigError, match="no such ledger"):
        open_ledger()
    assert list(tmp_path.iterdir()) == []


def test_it_is_created_for_its_owner_only_and_kept_out_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "a" / "state"))
    folder = home()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"


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
        "  next: set SMALLFIRST_HOME to a folder you can write, or mend its permissions or its disk"
    )


def test_a_child_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "Db_Password", "HARMLESS"):
        monkeypatch.setenv(name, "x")
    found = child_environment(ENGINE_KEY="own")
    assert {"OPENAI_API_KEY", "HF_TOKEN", "Db_Password"} & found.keys() == set()
    assert (found["HARMLESS"], found["ENGINE_KEY"]) == ("x", "own")
