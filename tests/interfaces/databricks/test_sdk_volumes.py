"""Uploads as existing code makes them reach the folder that fm.create reads, and nothing else of the SDK changes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import smallfirst
from smallfirst.data.sources.resolve import open_source
from smallfirst.errors import DataError, SmallfirstError
from smallfirst.interfaces.databricks import sdk_volumes as workspace
from smallfirst.interfaces.databricks.sdk_volumes import LocalWorkspace

sdk = pytest.importorskip("databricks.sdk")
from databricks.sdk.errors import AlreadyExists, NotFound  # noqa: E402

ROOT = Path(smallfirst.__file__).parents[1]
ROWS = b'{"prompt": "a", "response": "b"}\n'


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volume main.desk.raw, and a client class that is the SDK's again afterwards."""
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "no-profiles"))
    monkeypatch.setenv("SMALLFIRST_VOLUMES", str(tmp_path))
    monkeypatch.setattr(sdk, "WorkspaceClient", sdk.WorkspaceClient)
    monkeypatch.setattr(LocalWorkspace, "theirs", sdk.WorkspaceClient)
    workspace.install()
    folder = tmp_path / "main" / "desk" / "raw"
    folder.mkdir(parents=True)
    return folder


def test_what_is_uploaded_is_what_create_reads(volume: Path) -> None:
    client = sdk.WorkspaceClient()
    assert client.volumes.read("main.desk.raw").storage_location == str(volume)
    with pytest.raises(NotFound):
        client.files.get_directory_metadata("/Volumes/main/desk/raw/one/two")
    client.files.create_directory("/Volumes/main/desk/raw/one/two")
    client.files.create_directory("/Volumes/main/desk/raw/one/two")
    client.files.get_directory_metadata("/Volumes/main/desk/raw/one/two")
    client.files.upload("/Volumes/main/desk/raw/one/two/rows.jsonl", io.BytesIO(ROWS), overwrite=True)
    assert [e.answer for e in open_source("/Volumes/main/desk/raw/one/two/rows.jsonl").examples] == ["b"]
    assert [path.name for path in (volume / "one" / "two").iterdir()] == ["rows.jsonl"]


def test_a_file_is_overwritten_unless_that_is_forbidden(volume: Path) -> None:
    files = sdk.WorkspaceClient().files
    files.upload("/Volumes/main/desk/raw/a", io.BytesIO(b"1"))
    files.upload("dbfs:/Volumes/main/desk/raw/a", io.BytesIO(b"2"))
    with pytest.raises(AlreadyExists, match="raw/a is there already"):
        files.upload("/Volumes/main/desk/raw/a", io.BytesIO(b"3"), overwrite=False)
    assert (volume / "a").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["main.desk.other", "main.desk", "main.desk.raw/../raw", ""])
def test_a_volume_is_not_made_by_naming_it(volume: Path, name: str) -> None:
    client = sdk.WorkspaceClient()
    with pytest.raises(NotFound):
        client.volumes.read(name)
    with pytest.raises(NotFound, match=r"a volume is a folder .*catalog/schema/volume"):
        client.files.upload("/Volumes/main/desk/other/a", io.BytesIO(b"1"))
    assert not (volume.parent / "other").exists()


@pytest.mark.parametrize("path", ["/Volumes/main/desk/raw/../../../out", "/Volumes/main/desk/raw/link/out"])
def test_nothing_is_written_outside_the_volumes(volume: Path, path: str, tmp_path: Path) -> None:
    (volume / "link").symlink_to("/")
    with pytest.raises(DataError):
        sdk.WorkspaceClient().files.upload(path, io.BytesIO(b"1"))
    assert not (tmp_path / "out").exists()


def test_without_a_workspace_the_rest_says_what_to_do(volume: Path) -> None:
    client = sdk.WorkspaceClient()
    with pytest.raises(SmallfirstError, match=r"(?s)no workspace of Databricks is configured.*skip_deploy=True"):
        client.model_versions.list("main.desk.model")


class Theirs:
    """Stands for the SDK's own client, which looks for its host on the network as soon as it is made."""

    files = "theirs"

    def __init__(self, host: str) -> None:
        self.config = host


def test_the_rest_is_asked_of_the_sdks_client(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalWorkspace, "theirs", Theirs)
    client = sdk.WorkspaceClient(host="here")
    assert client.config == "here"
    assert client.files != "theirs"
    monkeypatch.delenv("SMALLFIRST_VOLUMES")
    assert sdk.WorkspaceClient(host="here").files == "theirs"


@pytest.mark.parametrize(("volumes", "ours"), [("", False), (".", True)])
def test_the_shim_puts_it_in_place_only_where_volumes_are_folders(volumes: str, ours: bool) -> None:
    code = (
        "import sys, smallfirst.interfaces.databricks.sdk_shim\n"
        f"assert ('databricks.sdk' in sys.modules) is {ours}\n"
        "from databricks.sdk import WorkspaceClient\n"
        f"assert (WorkspaceClient.__name__ == 'LocalWorkspace') is {ours}"
    )
    env = {**os.environ, "SMALLFIRST_VOLUMES": volumes}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
