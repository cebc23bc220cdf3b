"""The files of a registered model in an MLflow run: copied, listed in a manifest with their digests, and verified."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from smallfirst.base.errors import ConfigError, RegistryError
from smallfirst.base.files import sha256, write_atomically
from smallfirst.base.paths import home
from smallfirst.base.records import Record
from smallfirst.registry.runs import TrackedRun, client, store_errors

MANIFEST_FILENAME = "smallfirst-manifest.json"
ALLOWED_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".gguf", ".yaml")
"""Formats that hold data only: loading them cannot run code, as loading a pickle can."""


class Manifest(Record):
    """The files of a model folder."""

    files: dict[str, str]
    """SHA-256 in hex by path inside the folder, with `/` on every platform."""


class StoredModel(Record):
    """Location of the files of one registration."""

    run_id: str
    """MLflow run that holds them."""
    entry: str
    """Folder inside the run, new for each registration, with `model/` and `attachments/`."""
    source: str
    """URI of the model folder, as MLflow shows it."""

    def local_folder(self) -> Path | None:
        """Return the model folder, also if the project was moved, if artifacts are on this machine, else None."""
        address = urlparse(self.source)
        if address.scheme not in ("", "file"):
            return None
        recorded = Path(url2pathname(address.path) if address.scheme else self.source)
        moved = home() / "artifacts" / self.run_id / "artifacts" / self.entry / "model"
        return moved if moved.is_dir() and not recorded.is_dir() else recorded

    def folder(self) -> Path:
        return self.local_folder() or home() / "downloads" / self.run_id / self.entry / "model"

    def fetch(self) -> Path:
        folder = self.folder()
        if folder.is_dir() or self.local_folder() is not None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Downloaded to a temporary folder and moved, so that a killed download is not taken for the model.
        with store_errors(), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            downloaded = client().download_artifacts(self.run_id, f"{self.entry}/model", temporary)
            if not folder.is_dir():
                shutil.move(downloaded, folder)
        return folder

    def write_attachment(self, filename: str, content: bytes) -> None:
        local = self.local_folder()
        if local is not None:
            write_atomically(local.parent / "attachments" / filename, content)
            return
        with store_errors(), tempfile.TemporaryDirectory() as temporary:
            path = write_atomically(Path(temporary) / filename, content)
            client().log_artifact(self.run_id, str(path), f"{self.entry}/attachments")

    def read_attachment(self, filename: str) -> bytes | None:
        local = self.local_folder()
        if local is not None:
            path = local.parent / "attachments" / filename
            return path.read_bytes() if path.is_file() else None
        wanted, store = f"{self.entry}/attachments/{filename}", client()
        with store_errors(), tempfile.TemporaryDirectory() as temporary:
            if wanted not in [item.path for item in store.list_artifacts(self.run_id, f"{self.entry}/attachments")]:
                return None
            return Path(store.download_artifacts(self.run_id, wanted, temporary)).read_bytes()

    def write_folder(self, name: str, paths: Iterable[Path]) -> None:
        """Upload files and folders beside the model as folder `name`, unless artifacts are on this machine."""
        for path in paths if self.local_folder() is None else ():
            TrackedRun(client(), self.run_id).log_artifact(path, f"{self.entry}/{name}")

    def read_folder(self, name: str, to: Path) -> None:
        """Download such a folder to `to`, which does not exist yet; nothing if there is none."""
        wanted, store = f"{self.entry}/{name}", client()
        with store_errors():
            if self.local_folder() is not None or not store.list_artifacts(self.run_id, wanted):
                return
            to.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=to.parent, prefix=".") as temporary:
                downloaded = Path(store.download_artifacts(self.run_id, wanted, temporary))
                with suppress(OSError):  # another process was faster
                    downloaded.rename(to)


def upload(run_id: str, folder: Path, manifest: Manifest) -> StoredModel:
    """Copy `folder` and its manifest into the run and return their location; no version refers to it yet."""
    entry, store = f"registered/{uuid.uuid4().hex[:12]}", client()
    with store_errors(), tempfile.TemporaryDirectory() as temporary:
        artifact_uri = store.get_run(run_id).info.artifact_uri
        for name in manifest.files:
            inside = f"{entry}/model/{name}".rpartition("/")[0]
            store.log_artifact(run_id, str(folder / name), inside)
        path = manifest.save(Path(temporary) / MANIFEST_FILENAME)  # last: it makes the copy complete
        store.log_artifact(run_id, str(path), f"{entry}/model")
    return StoredModel(run_id=run_id, entry=entry, source=f"{artifact_uri}/{entry}/model")


def build_manifest(folder: Path) -> Manifest:
    """Return the manifest of `folder`. Raise RegistryError if it is empty or has a link or a file of another format."""
    if not folder.is_dir():
        raise RegistryError(f"{folder} is not a folder with a model", hint="train a model first")
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise RegistryError(f"{path} is a link: a registered model must contain its own files")
        if path.is_dir() or name == MANIFEST_FILENAME:
            continue
        if path.suffix.lower() not in ALLOWED_SUFFIXES:
            raise RegistryError(
                f"{path} has a format that is not stored; allowed: {' '.join(ALLOWED_SUFFIXES)}",
                hint="save weights as safetensors, settings as JSON: loading a pickle runs code",
            )
        files[name] = sha256(path)
    if not files:
        raise RegistryError(f"{folder} is empty: there is no model to register")
    return Manifest(files=files)


def verify(folder: Path, what: str, *, fingerprint: str) -> None:
    """Raise RegistryError naming `what` unless `folder` has exactly the files of the manifest with this fingerprint."""
    hint = f"restore {folder}, or register the model again"
    try:
        manifest = Manifest.load(folder / MANIFEST_FILENAME)
    except (OSError, ValueError, ConfigError):
        raise RegistryError(f"{what} is incomplete: it has no {MANIFEST_FILENAME}", hint=hint) from None
    if manifest.fingerprint() != fingerprint:
        raise RegistryError(f"{what} was changed: its manifest is not the registered one", hint=hint)
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise RegistryError(f"{what} is incomplete: {name} is missing", hint=hint)
        if sha256(folder / name) != digest:
            raise RegistryError(f"{what} was changed: {name} is not the registered file", hint=hint)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(present - manifest.files.keys() - {MANIFEST_FILENAME}):
        raise RegistryError(f"{what} was changed: {name} was added", hint=hint)
