"""Uploaded files on disk: one folder for each owner and file, published and deleted by renaming.

A killed process leaves a draft that no client sees, and that is removed a day later. Two processes may share one store.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.paths import home
from smallfirst.records import Record

FILE_ID = re.compile(r"file-[0-9a-f]{24}")
_CONTENT = "rows.jsonl"
_ABOUT = "file.json"
_DRAFT, _DELETED = ".draft-", ".gone-"
_OLD_S = 86_400
_KEYLESS = "no-key"


class StoredFile(Record):
    """An uploaded file."""

    id: str
    """`file-` and 24 hex digits."""
    filename: str
    """Name that the client gave, without folders; only shown."""
    n_bytes: int
    created_at: int
    """Time of the upload, in seconds since 1970."""


class StorageFull(SmallfirstError):
    """The files of this key leave no room for another one."""


class FileStore:
    """The files of all owners, below `files` in the state folder."""

    def __init__(self, *, max_files: int, max_bytes: int) -> None:
        self._root = home() / "files"
        self._max_files, self._max_bytes = max_files, max_bytes
        for left in [*self._root.glob(f"*/{_DRAFT}*"), *self._root.glob(f"*/{_DELETED}*")]:
            if time.time() - left.stat().st_mtime > _OLD_S:
                shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def draft(self, owner: str) -> Iterator[tuple[BinaryIO, Callable[[str], StoredFile]]]:
        """Yield a file to write and a function that publishes it under a name; unpublished, it is removed."""
        with self.scratch(owner) as folder, (folder / _CONTENT).open("wb") as content:

            def publish(filename: str) -> StoredFile:
                content.flush()
                os.fsync(content.fileno())
                return self._publish(owner, folder, filename)

            yield content, publish

    @contextmanager
    def scratch(self, owner: str) -> Iterator[Path]:
        """Yield a new folder that no client sees, removed at the end unless it was renamed."""
        folder = self._folder(owner) / f"{_DRAFT}{secrets.token_hex(8)}"
        folder.mkdir(parents=True, mode=0o700)
        try:
            yield folder
        finally:
            self._remove(owner, folder)

    def find(self, owner: str, id: str) -> StoredFile | None:
        if not FILE_ID.fullmatch(id):
            return None
        try:
            return StoredFile.load(self._folder(owner) / id / _ABOUT)
        except (FileNotFoundError, ConfigError):
            return None

    def all(self, owner: str) -> list[StoredFile]:
        """Return the owner's files, newest first."""
        folder = self._folder(owner)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        files = [file for name in names if (file := self.find(owner, name)) is not None]
        return sorted(files, key=lambda file: (file.created_at, file.id), reverse=True)

    def path(self, owner: str, file: StoredFile) -> Path:
        return self._folder(owner) / file.id / _CONTENT

    def delete(self, owner: str, file: StoredFile) -> None:
        """Delete the file; ignore one that is gone already."""
        self._remove(owner, self._folder(owner) / file.id)

    def _remove(self, owner: str, folder: Path) -> None:
        """Rename the folder first, so that no reader sees half of it."""
        deleted = self._folder(owner) / f"{_DELETED}{secrets.token_hex(8)}"
        try:
            folder.rename(deleted)
        except FileNotFoundError:
            return
        shutil.rmtree(deleted, ignore_errors=True)

    def _folder(self, owner: str) -> Path:
        return self._root / (owner or _KEYLESS)

    def _publish(self, owner: str, draft: Path, filename: str) -> StoredFile:
        existing = self.all(owner)
        n_bytes = (draft / _CONTENT).stat().st_size
        hint = "delete files that are no longer needed"
        if len(existing) >= self._max_files:
            raise StorageFull(f"there are {len(existing)} files already; at most {self._max_files} are kept", hint=hint)
        if sum(file.n_bytes for file in existing) + n_bytes > self._max_bytes:
            raise StorageFull(f"the files together would take more than {self._max_bytes} bytes", hint=hint)
        file = StoredFile(
            id=f"file-{secrets.token_hex(12)}",
            filename=safe_filename(filename),
            n_bytes=n_bytes,
            created_at=int(time.time()),
        )
        file.save(draft / _ABOUT)
        draft.rename(self._folder(owner) / file.id)
        return file


def safe_filename(filename: str) -> str:
    """Return the last part of a path without control characters, at most 255 characters."""
    last = re.split(r"[/\\]", filename.rstrip("/\\"))[-1]
    shown = "".join(c for c in last if c.isprintable())[:255]
    return "upload.jsonl" if shown in ("", ".", "..") else shown
