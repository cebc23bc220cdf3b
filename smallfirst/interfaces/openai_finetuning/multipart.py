"""Receive a form with one file and write the file to disk as it arrives; only a chunk is ever in memory.

A form that is too large or broken is still read to its end, within a second limit, so that the client gets the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from smallfirst.serving.plugins import ApiError, PluginRequest

FILE = "file"
MAX_FIELDS = 8
MAX_FIELD_BYTES = 4096


class UploadForm(NamedTuple):
    """The parts of a form beside the content of its file."""

    fields: Mapping[str, str]
    filename: str
    """Name that the client gave: to be shown, never to be used as a path."""
    n_bytes: int


class _Broken(Exception):
    """The form breaks a rule."""


async def receive_form(request: PluginRequest, file: BinaryIO, *, max_bytes: int) -> UploadForm:
    """Write the form's part `file` to `file`, return the rest. Raise ApiError 415, 413 or 400, ClientDisconnected."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(415, "The body must be sent as Content-Type: multipart/form-data.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed bodies are not accepted.")
    problem, reader = "", None
    try:
        reader = _Reader(options[b"boundary"], file)
    except FormParserError as error:
        problem = str(error)
    async for chunk in request.chunks(max_bytes=max_bytes, max_read_bytes=2 * max_bytes):
        if reader is None or problem:
            continue  # read and drop the rest
        try:
            await asyncio.to_thread(reader.feed, chunk)
        except (_Broken, FormParserError) as error:
            problem = str(error)
    if problem or reader is None or not reader.complete:
        raise ApiError(400, f"The form cannot be read: {problem or 'it ends too early'}.", code="invalid_form")
    if reader.filename is None:
        raise ApiError(400, f'The form has no file; send it as "{FILE}".', param=FILE)
    return UploadForm(reader.fields, reader.filename, reader.n_bytes)


class _Reader:
    def __init__(self, boundary: bytes, file: BinaryIO) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.n_bytes = 0
        self.complete = False
        self._file = file
        self._header, self._value, self._name = bytearray(), bytearray(), ""
        self._field: bytearray | None = None  # None: this part is the file
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._enter,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def _begin(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _enter(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._field = None if b"filename" in options else bytearray()
        if self._field is not None:
            if len(self.fields) >= MAX_FIELDS:
                raise _Broken(f"more than {MAX_FIELDS} fields")
            return
        if self._name != FILE:
            raise _Broken(f'the file must be sent as "{FILE}"')
        if self.filename is not None:
            raise _Broken("more than one file")
        self.filename = options[b"filename"].decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._file.write(data[start:end])
            self.n_bytes += end - start
            return
        self._field += data[start:end]
        if len(self._field) > MAX_FIELD_BYTES:
            raise _Broken(f"a field of more than {MAX_FIELD_BYTES} bytes")

    def _end(self) -> None:
        if self._field is not None:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.complete = True
