"""The files of a registered model in an MLflow run: copied, sealed by a manifest, found again.

A folder without its seal, or one whose files differ from it, is not a model: half copied, or
changed since. The price is reading every byte once when a model is loaded, about a second a
gigabyte.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from smallfirst.errors import ConfigError, RegistryError
from smallfirst.files import write_atomically
from smallfirst.paths import home
from smallfirst.records import Record
from smallfirst.registry.runs import client, store_errors

MANIFEST_FILENAME = "smallfirst-manifest.json"
ALLOWED_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".gguf", ".yaml")
"""Formats that hold data only: loading them cannot run code, as loading a pickle does."""


class Manifest(Record):
    """What a model folder holds."""

    files: dict[str, str]
    """SHA-256 in hex by path inside the folder, with `/` on every system."""


class StoredModel(Record):
    """Where the files of one registration are kept."""

    run_id: str
    """The MLflow run that holds them."""
    entry: str
    """Folder inside the run, new for each registration; holds `model/` and `attachments/`."""
    source: str
    """URI of the model folder, as MLflow shows it."""

    def local_folder(self) -> Path | None:
        """The model folder if the store keeps artifacts on this machine, else None.

        A project folder may have been moved since: then it is looked for in the state folder of
        today.
        """
        address = urlparse(self.source)
        if address.scheme not in ("", "file"):
            return None
        recorded = Path(url2pathname(address.path) if address.scheme else self.source)
        moved = home() / "artifacts" / self.run_id / "artifacts" / self.entry / "model"
        return moved if moved.is_dir() and not recorded.is_dir() else recorded

    def folder(self) -> Path:
        """Where the model folder is, or will be once it is downloaded."""
        return self.local_folder() or home() / "downloads" / self.run_id / self.entry / "model"

    def fetch(self) -> Path:
        """The local model folder, downloaded if the store is elsewhere and it has not been yet."""
        folder = self.folder()
        if folder.is_dir() or self.local_folder() is not None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Downloaded beside its place and renamed, so that a killed download is not taken for the
        # model.
        with store_errors(), tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            got = client().download_artifacts(self.run_id, f"{self.entry}/model", draft)
            if not folder.is_dir():
                shutil.move(got, folder)
        return folder

    def write_attachment(self, filename: str, content: bytes) -> None:
        """Nothing back; `content` is beside the model as `attachments/<filename>`."""
        own = self.local_folder()
        if own is not None:
            write_atomically(own.parent / "attachments" / filename, content)
            return
        with store_errors(), tempfile.TemporaryDirectory() as draft:
            path = write_atomically(Path(draft) / filename, content)
            client().log_artifact(self.run_id, str(path), f"{self.entry}/attachments")

    def read_attachment(self, filename: str) -> bytes | None:
        """The content of `attachments/<filename>`, None if there is no such file."""
        own = self.local_folder()
        if own is not None:
            path = own.parent / "attachments" / filename
            return path.read_bytes() if path.is_file() else None
        wanted = f"{self.entry}/attachments/{filename}"
        store = client()
        with store_errors(), tempfile.TemporaryDirectory() as draft:
            there = store.list_artifacts(self.run_id, f"{self.entry}/attachments")
            if wanted not in [item.path for item in there]:
                return None
            return Path(store.download_artifacts(self.run_id, wanted, draft)).read_bytes()


def upload(run_id: str, folder: Path, manifest: Manifest) -> StoredModel:
    """The place of a complete, sealed copy of `folder` in the run; no version refers to it yet."""
    entry = f"registered/{uuid.uuid4().hex[:12]}"
    store = client()
    with store_errors(), tempfile.TemporaryDirectory() as draft:
        place = store.get_run(run_id).info.artifact_uri
        for name in manifest.files:
            inside = f"{entry}/model/{name}".rpartition("/")[0]
            store.log_artifact(run_id, str(folder / name), inside)
        sealed = manifest.save(Path(draft) / MANIFEST_FILENAME)
        store.log_artifact(run_id, str(sealed), f"{entry}/model")
    return StoredModel(run_id=run_id, entry=entry, source=f"{place}/{entry}/model")


def build_manifest(folder: Path) -> Manifest:
    """The manifest of `folder` as it is now.

    Raises RegistryError for a folder that cannot be stored: empty, or with a link or a file of
    another format.
    """
    if not folder.is_dir():
        raise RegistryError(f"{folder} is not a folder with a model", hint="train a model first")
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise RegistryError(f"{path} is a link: a registered model must hold its own files")
        if path.is_dir() or name == MANIFEST_FILENAME:
            continue
        if path.suffix.lower() not in ALLOWED_SUFFIXES:
            raise RegistryError(
                f"{path} has a format that is not stored; allowed are {' '.join(ALLOWED_SUFFIXES)}",
                hint="save weights as safetensors, settings as JSON: loading a pickle runs code",
            )
        files[name] = sha256(path)
    if not files:
        raise RegistryError(f"{folder} is empty: there is no model to register")
    return Manifest(files=files)


def verify(folder: Path, what: str, *, fingerprint: str) -> None:
    """Nothing back if `folder` holds exactly what was sealed under `fingerprint`.

    Raises RegistryError naming `what` and the file that is missing, changed or added.
    """
    hint = f"restore {folder}, or register the model again"
    try:
        sealed = Manifest.load(folder / MANIFEST_FILENAME)
    except (OSError, ValueError, ConfigError):
        raise RegistryError(f"{what} is incomplete: it has no {MANIFEST_FILENAME}", hint=hint) from None
    if sealed.fingerprint() != fingerprint:
        raise RegistryError(f"{what} was changed: its manifest is not the registered one", hint=hint)
    for name, digest in sealed.files.items():
        if not (folder / name).is_file():
            raise RegistryError(f"{what} is incomplete: {name} is missing", hint=hint)
        if sha256(folder / name) != digest:
            raise RegistryError(f"{what} was changed: {name} is not the registered file", hint=hint)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(present - sealed.files.keys() - {MANIFEST_FILENAME}):
        raise RegistryError(f"{what} was changed: {name} was added", hint=hint)


def sha256(path: Path) -> str:
    """SHA-256 of the file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
