"""OpenAI's files for fine-tuning; jobs keep their own copy of the rows, so deleting a file does not harm them."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

from smallfirst.interfaces.openai_finetuning.file_store import FileStore, StorageFull, StoredFile
from smallfirst.interfaces.openai_finetuning.pagination import page
from smallfirst.interfaces.openai_finetuning.settings import FineTuningSettings
from smallfirst.serving.plugins import Admission, ApiError, FileResponse, PluginRequest, PluginResponse, PluginRoute

if TYPE_CHECKING:
    from smallfirst.interfaces.openai_finetuning.multipart import UploadForm

PURPOSE = "fine-tune"
MAX_PAGE_SIZE = 10_000
_FIELDS = ("purpose",)


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
                    return file_object(await self._receive(call))
        except TimeoutError:
            raise ApiError(408, "The upload took too long.", code="timeout") from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ApiError(507, "The server's disk is full.", kind="server_error", code="storage_full") from None

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

    async def _receive(self, call: PluginRequest) -> StoredFile:
        from smallfirst.interfaces.openai_finetuning.multipart import receive_form

        with self._store.draft(call.caller) as (content, publish):
            form = await receive_form(call, content, max_bytes=self._settings.max_upload_bytes)
            _check(form)
            try:
                return await asyncio.to_thread(publish, form.filename)
            except StorageFull as error:
                raise ApiError(400, f"{error.args[0]}; {error.hint}.", code="storage_full") from None

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


def _check(form: UploadForm) -> None:
    for name in form.fields:
        if name.startswith("expires_after"):
            raise ApiError(400, "expires_after is not supported: files are kept until deleted.", param="expires_after")
        if name not in _FIELDS:
            raise ApiError(400, f'Unknown parameter: "{name[:64]}".', param=name[:64], code="unknown_parameter")
    purpose = form.fields.get("purpose")
    if purpose != PURPOSE:
        shown = f'"{purpose[:64]}"' if purpose else "missing"
        raise ApiError(400, f'purpose is {shown}; files here are for "{PURPOSE}".', param="purpose")
    if not form.n_bytes:
        raise ApiError(400, "The file is empty.", param="file")
