"""OpenAI's files for fine-tuning, and the API's limits. Jobs keep their own copy of the rows of a deleted file."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import pydantic

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import home
from smallfirst.base.records import Record
from smallfirst.interfaces.jobs.job_folder import trainable_models
from smallfirst.models.pricing import MachinePrice
from smallfirst.serving.plugins import (
    Admission,
    ApiError,
    FileResponse,
    FormData,
    PluginRequest,
    PluginResponse,
    PluginRoute,
    UploadFile,
)

_BASE_NAME = re.compile(r"[A-Za-z0-9._/@-]{1,64}")
_TWO_PARTS = r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"


class FineTuningSettings(Record):
    """Limits of the fine-tuning API."""

    base_models: dict[str, str] = pydantic.Field(default_factory=lambda: {name: name for name in trainable_models()})
    """Hub name, catalogue name or folder of each model that callers may train. No other can be trained, so that no
    caller makes the server fetch weights or read a folder of their choice."""
    register_to: str = pydantic.Field(default="main.fine_tuning", pattern=_TWO_PARTS)
    """Catalogue and schema (`catalog.schema`) of the registered models; their third part is the job's suffix."""
    max_upload_bytes: int = pydantic.Field(default=100 * 1024 * 1024, ge=1)
    """Largest upload. A job that reads it takes at most five times its size in memory, and some 3 kB a row."""
    max_rows: int = pydantic.Field(default=100_000, ge=1)
    """Most rows of a file; a job of more fails as soon as they are counted."""
    max_stored_bytes: int = pydantic.Field(default=2 * 1024**3, ge=1)
    max_files: int = pydantic.Field(default=1000, ge=1)
    upload_timeout_s: float = pydantic.Field(default=600, gt=0)
    max_uploads: int = pydantic.Field(default=4, ge=1)
    """Concurrent uploads; beyond that the answer is 503 with Retry-After."""
    max_open_jobs: int = pydantic.Field(default=16, ge=1)
    """Unfinished jobs on this machine, of all submitters; beyond that the answer is 429."""
    max_open_jobs_of_user: int = pydantic.Field(default=2, ge=1)
    """Unfinished jobs of one owner whose keys have the role `user`; beyond that the answer is 429. Keys of
    administrators, and a server without keys, have the machine's limit alone."""
    max_loaded_models: int = pydantic.Field(default=2, ge=1)
    """Fine-tuned models kept in memory; the least recently used one makes room."""
    machine: MachinePrice = MachinePrice()

    @pydantic.field_validator("base_models")
    @classmethod
    def _can_be_served_and_found(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _BASE_NAME.fullmatch(name):
                raise ValueError(f'"{name}" cannot be a base model\'s name: 1 to 64 of A-Z a-z 0-9 . _ / @ -')
        # A job may run in another folder.
        return {name: str(Path(at).absolute()) if Path(at).is_dir() else at for name, at in value.items()}


PURPOSE = "fine-tune"
MAX_PAGE_SIZE = 10_000
FILE_ID = re.compile(r"file-[0-9a-f]{24}")
_CONTENT, _ABOUT, _DRAFT = "rows.jsonl", "file.json", ".draft-"
_OLD_S = 86_400
_KEYLESS = "no-key"


class FilesApi:
    """The routes of /v1/files."""

    def __init__(self, store: FileStore, settings: FineTuningSettings) -> None:
        self._store, self._settings = store, settings
        self._uploads = Admission(in_flight=settings.max_uploads, queue=0)
        self.routes = (
            PluginRoute("POST", "/v1/files", self.create, "user"),
            PluginRoute("GET", "/v1/files", self.list, "user"),
            PluginRoute("GET", "/v1/files/{file_id}", self.retrieve, "user"),
            PluginRoute("GET", "/v1/files/{file_id}/content", self.content, "user"),
            PluginRoute("DELETE", "/v1/files/{file_id}", self.delete, "user"),
        )

    async def create(self, call: PluginRequest) -> PluginResponse:
        """Store an upload and return its file object. Raise ApiError for a form that cannot be stored."""
        try:
            async with asyncio.timeout(self._settings.upload_timeout_s):
                with self._uploads.places.hold(call.caller):
                    form = await call.form(max_bytes=self._settings.max_upload_bytes)
                    try:
                        upload = _checked_file(form)
                        kept = await asyncio.to_thread(
                            self._store.keep, call.caller, upload.filename or "", upload.file
                        )
                        return file_object(kept)
                    finally:
                        await form.close()
        except TimeoutError:
            raise ApiError(408, "The upload took too long.", code="timeout") from None

    def list(self, call: PluginRequest) -> PluginResponse:
        """Return a page of the caller's files, newest first unless `order` is asc."""
        parameters = dict(call.query)
        order = parameters.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, "order must be asc or desc.", param="order")
        files = self._store.all(call.caller)
        if parameters.get("purpose", PURPOSE) != PURPOSE:
            files = []
        items = [file_object(file) for file in (files if order == "desc" else reversed(files))]
        return page(items, call.query, default=MAX_PAGE_SIZE, maximum=MAX_PAGE_SIZE)

    def retrieve(self, call: PluginRequest) -> PluginResponse:
        return file_object(self._find(call))

    def content(self, call: PluginRequest) -> PluginResponse:
        file = self._find(call)
        # A browser must never show a file as a page of this server: its uploader chose what is in it.
        headers = {"x-content-type-options": "nosniff", "content-type": "application/octet-stream"}
        return FileResponse(self._store.path(call.caller, file), filename=file.filename, headers=headers)

    def delete(self, call: PluginRequest) -> PluginResponse:
        file = self._find(call)
        self._store.delete(call.caller, file)
        return {"id": file.id, "object": "file", "deleted": True}

    def _find(self, call: PluginRequest) -> StoredFile:
        id = call.path_params["file_id"]
        file = self._store.find(call.caller, id)
        if file is None:
            raise ApiError(404, f"No such File object: {id[:64]}", param="id", code="not_found")
        return file


def file_object(file: StoredFile) -> dict[str, Any]:
    """Return the file as OpenAI's object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.n_bytes,
        "created_at": file.created_at,
        "expires_at": None,
        "filename": file.filename,
        "purpose": PURPOSE,
        "status": "processed",
        "status_details": None,
    }


def _checked_file(form: FormData) -> UploadFile:
    """Return the form's file. Raise ApiError 400 if it is missing or empty, or a field says what is not done here."""
    for name in form:
        if name not in ("file", "purpose"):
            raise ApiError(400, f'Unknown parameter: "{name[:64]}".', param=name[:64], code="unknown_parameter")
    purpose, file = form.get("purpose"), form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, 'The form has no whole file; send it as "file".', param="file")
    if purpose != PURPOSE:
        shown = f'"{purpose[:64]}"' if isinstance(purpose, str) and purpose else "missing"
        raise ApiError(400, f'purpose is {shown}; files here are for "{PURPOSE}".', param="purpose")
    if not file.size:
        raise ApiError(400, "The file is empty.", param="file")
    return file


class StoredFile(Record):
    """An uploaded file."""

    id: str
    """`file-` and 24 hex digits."""
    filename: str
    """Name that the client gave, without folders; only shown."""
    n_bytes: int
    created_at: int
    """Time of the upload, in seconds since 1970."""


class FileStore:
    """The files of all owners, below `files` in the state folder."""

    def __init__(self, *, max_files: int, max_bytes: int) -> None:
        self._root = home() / "files"
        self._max_files, self._max_bytes = max_files, max_bytes
        for left in self._root.glob(f"*/{_DRAFT}*"):
            if time.time() - left.stat().st_mtime > _OLD_S:
                shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def scratch(self, owner: str) -> Iterator[Path]:
        """Yield a new folder that no client sees, removed at the end unless it was renamed."""
        folder = self._folder(owner) / f"{_DRAFT}{secrets.token_hex(8)}"
        folder.mkdir(parents=True, mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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
        folder = self._folder(owner) / file.id
        (folder / _ABOUT).unlink(missing_ok=True)  # from here on there is no such file
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, owner: str) -> Path:
        return self._root / (owner or _KEYLESS)

    def keep(self, owner: str, filename: str, content: BinaryIO) -> StoredFile:
        """Store a copy of `content`. Raise ApiError 400 if the files of the owner leave no room for it."""
        with self.scratch(owner) as draft:
            with (draft / _CONTENT).open("wb") as copy:
                shutil.copyfileobj(content, copy)
                copy.flush()
                os.fsync(copy.fileno())
                n_bytes = copy.tell()
            existing = self.all(owner)
            if len(existing) >= self._max_files or sum(f.n_bytes for f in existing) + n_bytes > self._max_bytes:
                most = f"at most {self._max_files} files and {self._max_bytes} bytes are kept"
                raise ApiError(400, f"{most}; delete files that are no longer needed.", code="storage_full")
            id, now = f"file-{secrets.token_hex(12)}", int(time.time())
            file = StoredFile(id=id, filename=safe_filename(filename), n_bytes=n_bytes, created_at=now)
            file.save(draft / _ABOUT)
            draft.rename(self._folder(owner) / file.id)
            return file


def safe_filename(filename: str) -> str:
    """Return the last part of a path without control characters, at most 255 characters."""
    last = re.split(r"[/\\]", filename.rstrip("/\\"))[-1]
    shown = "".join(c for c in last if c.isprintable())[:255]
    return "upload.jsonl" if shown in ("", ".", "..") else shown


def page(
    items: Sequence[Mapping[str, Any]], query: Sequence[tuple[str, str]], *, default: int, maximum: int
) -> dict[str, Any]:
    """Return the page of the list that `limit` and `after` ask for. Raise ApiError 400 if they cannot be read."""
    parameters = dict(query)
    text = parameters.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= maximum):
        raise ApiError(400, f'limit is "{text[:20]}"; it must be a number from 1 to {maximum}.', param="limit")
    start = 0
    if "after" in parameters:
        ids = [item["id"] for item in items]
        if parameters["after"] not in ids:
            raise ApiError(400, f'after is "{parameters["after"][:64]}", which is not in this list.', param="after")
        start = ids.index(parameters["after"]) + 1
    shown = items[start : start + int(text)]
    return {
        "object": "list",
        "data": list(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > start + len(shown),
    }


def unix_seconds(moment: datetime | str) -> int:
    """Return the seconds since 1970 of a time, which may be ISO 8601 text."""
    return int((datetime.fromisoformat(moment) if isinstance(moment, str) else moment).timestamp())
