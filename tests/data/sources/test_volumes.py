"""Volumes: a folder that stands in for them, and the Files API of a workspace, here a small server of our own."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallfirst.data.sources.load import load_rows
from smallfirst.data.sources.volumes import volume_path
from smallfirst.errors import ConfigError, DataError
from smallfirst.paths import home

ROW = b'{"text": "a", "label": "x"}\n'


@pytest.fixture(autouse=True)
def _no_workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SMALLFIRST_VOLUMES", "DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CONFIG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "no-profiles"))


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a volume main/desk/raw below a root that stands in for /Volumes."""
    folder = tmp_path / "volumes" / "main" / "desk" / "raw"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SMALLFIRST_VOLUMES", str(tmp_path / "volumes"))
    return folder


def refused(address: str) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(address)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["dbfs:", ""])
def test_a_file_of_a_volume_is_read_below_the_root(volume: Path, prefix: str) -> None:
    (volume / "train.jsonl").write_bytes(ROW)
    data = load_rows(f"{prefix}/Volumes/main/desk/raw/train.jsonl")
    assert (data.name, [e.path for e in data.examples]) == ("train.jsonl", [str(volume / "train.jsonl")])


def test_a_whole_volume_may_be_a_folder_of_text(volume: Path) -> None:
    (volume / "a.txt").write_text("Once")
    assert [e.answer for e in load_rows(Path("/Volumes/main/desk/raw")).examples] == ["Once"]


def test_a_missing_file_is_told_with_the_place_looked_at(volume: Path) -> None:
    address = "/Volumes/main/desk/raw/train.jsonl"
    assert refused(address) == f"{address}: no such file or folder ({volume}/train.jsonl)"


@pytest.mark.parametrize(
    "address",
    [
        "/Volumes/main/desk",
        "dbfs:/FileStore/train.jsonl",
        "dbfs:Volumes/main/desk/raw/train.jsonl",
        "/Volumes/main/desk/raw/../../../secret.jsonl",
        "/Volumes/../main/desk/raw/secret.jsonl",
    ],
)
def test_addresses_of_no_volume_are_refused(volume: Path, address: str) -> None:
    (volume.parents[2] / "secret.jsonl").write_bytes(ROW)
    assert refused(address) == f"{address}: expected [dbfs:]/Volumes/catalog/schema/volume/path, without .."


@pytest.mark.parametrize("link", ["secret.jsonl", "out/secret.jsonl"])
def test_no_link_leads_out_of_the_root(volume: Path, tmp_path: Path, link: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.jsonl").write_bytes(ROW)
    (volume / "secret.jsonl").symlink_to(tmp_path / "elsewhere" / "secret.jsonl")
    (volume / "out").symlink_to(tmp_path / "elsewhere")
    assert refused(f"/Volumes/main/desk/raw/{link}").startswith(
        f"{volume}/{link}: a link that leads out of {tmp_path}/volumes\n"
    )


def test_a_root_that_is_no_folder_is_a_wrong_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_VOLUMES", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"SMALLFIRST_VOLUMES: .*/none: no such folder"):
        volume_path("/Volumes/main/desk/raw/train.jsonl")


@pytest.mark.skipif(Path("/Volumes/main").exists(), reason="here is a real volume of that name")
def test_without_any_way_all_three_are_named() -> None:
    told = refused("/Volumes/main/desk/raw/train.jsonl")
    assert told.startswith("/Volumes/main/desk/raw/train.jsonl: no way to this volume\n  next: set SMALLFIRST_VOLUMES ")
    assert "where /Volumes is mounted" in told
    assert "DATABRICKS_HOST" in told


FILES = {
    "/Volumes/main/desk/raw/train.jsonl": ROW,
    "/Volumes/main/desk/raw/books/a.txt": b"Once",
    "/Volumes/main/desk/raw/books/deep/b.txt": b"upon a time",
    "/Volumes/main/desk/raw/evil/a.txt": b"Once",
}


class FilesAPI(http.server.BaseHTTPRequestHandler):
    """As much of the workspace's Files API as a download needs, for the files above and one token."""

    files = dict(FILES)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer right":
            return self._answer(403, _error("PERMISSION_DENIED", "wrong token"))
        path = self.path.partition("?")[0]
        content = self.files.get(path.removeprefix("/api/2.0/fs/files"))
        listed = self._listed(path.removeprefix("/api/2.0/fs/directories"))
        if path.startswith("/api/2.0/fs/files") and content is not None:
            return self._answer(200, content)
        if path.startswith("/api/2.0/fs/directories") and listed:
            return self._answer(200, json.dumps({"contents": listed}).encode())
        return self._answer(404, _error("NOT_FOUND", "not here"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._answer(404, _error("NOT_FOUND", "no such call"))

    def log_message(self, *_: object) -> None:
        pass

    def _listed(self, folder: str) -> list[dict[str, object]]:
        names = {path[len(folder) + 1 :].split("/")[0] for path in self.files if path.startswith(f"{folder}/")}
        found = [{"path": f"{folder}/{n}", "is_directory": f"{folder}/{n}" not in self.files} for n in sorted(names)]
        if folder.endswith("/evil"):
            found.append({"path": f"{folder}/../../secret.txt", "is_directory": False})
        return found

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        kind = "application/json" if status != 200 or content[:1] == b"{" else "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _error(code: str, message: str) -> bytes:
    return json.dumps({"error_code": code, "message": message}).encode()


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FilesAPI]]:
    pytest.importorskip("databricks.sdk")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FilesAPI)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DATABRICKS_TOKEN", "right")
    monkeypatch.setattr(FilesAPI, "files", dict(FILES))
    yield FilesAPI
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_from_the_workspace(workspace: type[FilesAPI]) -> None:
    [example] = load_rows("dbfs:/Volumes/main/desk/raw/train.jsonl").examples
    assert (example.text, example.answer) == ("a", "x")
    assert example.path == str(home() / "downloads" / "main" / "desk" / "raw" / "train.jsonl")
    workspace.files["/Volumes/main/desk/raw/train.jsonl"] = ROW * 2
    assert len(load_rows("dbfs:/Volumes/main/desk/raw/train.jsonl")) == 2  # never an old copy


def test_a_folder_is_fetched_whole_and_forgets_what_is_gone(workspace: type[FilesAPI]) -> None:
    assert [e.answer for e in load_rows("/Volumes/main/desk/raw/books").examples] == ["Once", "upon a time"]
    del workspace.files["/Volumes/main/desk/raw/books/a.txt"]
    assert [e.answer for e in load_rows("/Volumes/main/desk/raw/books").examples] == ["upon a time"]


def test_what_the_workspace_says_is_told(workspace: type[FilesAPI], monkeypatch: pytest.MonkeyPatch) -> None:
    address = "/Volumes/main/desk/raw/none.jsonl"
    assert refused(address) == f"{address}: no such file or folder in the workspace"
    monkeypatch.setenv("DATABRICKS_TOKEN", "wrong")
    assert refused(address) == f"{address}: the workspace refuses: Forbidden"


def test_a_file_over_the_limit_is_not_fetched(workspace: type[FilesAPI], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.data.sources.reader.MAX_SOURCE_BYTES", 10)
    address = "/Volumes/main/desk/raw/train.jsonl"
    assert refused(address).startswith(f"{address}: more than 10 bytes; no more are read of one source")
    assert not (home() / "downloads" / "main").exists()


def test_a_listing_cannot_write_outside_of_its_folder(workspace: type[FilesAPI]) -> None:
    assert "is plain names, without .. and empty parts" in refused("/Volumes/main/desk/raw/evil")
    assert not list(home().rglob("secret.txt"))
