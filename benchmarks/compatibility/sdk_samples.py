"""A pytest plugin for openai-python's own tests: writes down what each request expects, as an answer of its type.

    SAMPLES=FILE python -m pytest -p sdk_samples tests/api_resources       # with the folder of this file on PYTHONPATH

Nothing is sent. FILE gets a JSON object: "METHOD /path" (with " stream" after it for a streamed answer) to its content
type and body. Several processes of pytest-xdist each write `FILE.gwN`.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

import httpx2
import openai
import pydantic
from openai import _base_client

_expected: contextvars.ContextVar[tuple[Any, bool]] = contextvars.ContextVar("expected")
_samples: dict[str, tuple[str, str]] = {}
DEPTH = 12


def sample(kind: Any, depth: int = 0) -> Any:
    """A value of a type, as JSON has it: required fields alone, the first kind of a union, lists with one entry."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object or depth > DEPTH:
        return {}
    if origin is typing.Annotated or str(origin).endswith("Annotated"):
        return sample(arguments[0], depth)
    if hasattr(kind, "__value__"):  # a named alias
        return sample(kind.__value__, depth)
    if isinstance(kind, typing.TypeVar):
        return {}
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in arguments and depth > 2 else _first(arguments, depth)
    if origin is typing.Literal:
        return arguments[0]
    if origin in (list, tuple) or kind in (list, tuple):
        return [sample(arguments[0], depth + 1)] if arguments and depth < 6 else []
    if origin is dict or kind is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {}
    if isinstance(kind, type):
        return _of_class(kind, depth)
    return {}


def _first(kinds: tuple[Any, ...], depth: int) -> Any:
    return sample(next((kind for kind in kinds if kind is not type(None)), None), depth)


def _of_class(kind: type, depth: int) -> Any:
    if issubclass(kind, pydantic.BaseModel):
        fields = kind.model_fields.items()
        wanted = [(name, field) for name, field in fields if field.is_required() or not _may_lack(name, field)]
        return {field.alias or name: sample(field.annotation, depth + 1) for name, field in wanted}
    plain = {str: "string", bool: True, int: 0, float: 0.0, type(None): None}
    if kind in plain:
        return plain[kind]
    if issubclass(kind, datetime.datetime):
        return "2019-12-27T18:11:19.117Z"
    return "2019-12-27" if issubclass(kind, datetime.date) else {}


def _may_lack(name: str, field: Any) -> bool:
    return name != "data" and type(None) in typing.get_args(field.annotation)


def _answer(request: httpx2.Request) -> httpx2.Response:
    kind, stream = _expected.get()
    if stream:
        found = ("text/event-stream", "data: {}\n\ndata: {}\n\ndata: [DONE]\n\n")
    elif kind is str:
        found = ("text/plain", "string")
    elif kind is openai._types.NoneType:
        found = ("", "")
    elif isinstance(kind, type) and issubclass(
        kind, (httpx2.Response, openai._legacy_response.HttpxBinaryResponseContent)
    ):
        found = ("application/binary", "binary")
    else:
        found = ("application/json", json.dumps(sample(kind)))
    path = request.url.raw_path.decode().partition("?")[0]
    _samples[f"{request.method} {path}{' stream' * stream}"] = found
    headers = {"content-type": found[0]} if found[0] else {}
    return httpx2.Response(200 if found[0] else 204, headers=headers, content=found[1].encode(), request=request)


def _watched(request: Any, is_async: bool) -> Any:
    def ask(self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        _expected.set((self._maybe_override_cast_to(cast_to, options), stream))
        return request(self, cast_to, options, stream=stream, stream_cls=stream_cls)

    async def ask_later(self: Any, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        _expected.set((self._maybe_override_cast_to(cast_to, options), stream))
        return await request(self, cast_to, options, stream=stream, stream_cls=stream_cls)

    return ask_later if is_async else ask


def pytest_configure() -> None:
    """Answer every request here."""
    sync, later = _base_client.SyncAPIClient, _base_client.AsyncAPIClient
    sync.request = _watched(sync.request, False)
    later.request = _watched(later.request, True)

    async def send_later(self: Any, request: httpx2.Request, **_: Any) -> httpx2.Response:
        return _answer(request)

    sync._send_request = lambda self, request, **_: _answer(request)
    later._send_request = send_later


def pytest_sessionfinish() -> None:
    """Write the samples of this process."""
    if _samples:
        path = f"{os.environ['SAMPLES']}.{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(_samples, file)
