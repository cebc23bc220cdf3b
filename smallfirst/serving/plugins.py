"""What can be added to the server: routes that are plain functions, models that come and go, and eyes on the answers.

An Extension sees a Call and gives a mapping or a file; how that becomes HTTP is known here alone. Its models are looked
up by name for each request, and for the caller: a key sees its own. The price: the lookup happens on the event loop,
so it must be quick.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.serving.admission import read_body
from smallfirst.serving.auth.middleware import caller_digest
from smallfirst.serving.multipart import UploadForm, receive_form
from smallfirst.serving.openai.errors import json_object
from smallfirst.serving.openai.json_limits import check_json


class PluginRequest:
    """One request to an added route."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self.caller = caller_digest()
        """SHA-256 in hex of the caller's key; empty where the server asks for none."""
        self.place: Mapping[str, str] = request.path_params
        """The variable parts of the path."""
        self.query: Sequence[tuple[str, str]] = request.query_params.multi_items()
        """Names and values after the question mark."""

    async def json(self, *, max_bytes: int) -> dict[str, Any]:
        """The body. Raises WireError 400, 413 or 415, and ClientGone."""
        body = await read_body(self._request.scope, self._request.receive, max_bytes=max_bytes)
        values = json_object(body)
        check_json(values)
        return values

    async def form(self, file: BinaryIO, *, max_bytes: int) -> UploadForm:
        """The fields of a form, its one file written to `file` as it arrives. Raises as `receive_form` does."""
        return await receive_form(self._request.scope, self._request.receive, file, max_bytes=max_bytes)


class FileDownload(NamedTuple):
    """An answer that is a file."""

    path: Path
    filename: str
    """What the client is told it is called."""


class TextResponse(NamedTuple):
    """An answer that is neither JSON nor a file."""

    content: str
    media_type: str


PluginResponse = dict[str, Any] | FileDownload | TextResponse


class PluginRoute(NamedTuple):
    """A path that the server answers as well."""

    method: str
    path: str
    """As starlette writes it: /v1/files/{file_id}."""
    answer: Callable[[PluginRequest], Awaitable[PluginResponse]]
    """Gives the answer or raises WireError."""


class AnswerObserver(Protocol):
    """Sees every answer, once it is in the ledger."""

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Nothing; must be quick: what takes time goes into a task of its own."""


class Plugin(AnswerObserver, Protocol):
    """Routes and models beside those the server was started with."""

    @property
    def routes(self) -> Sequence[PluginRoute]:
        """What is answered."""

    def find(self, name: str, caller: str) -> Model | None:
        """The caller's model of this name; None if the caller has none."""

    def names(self, caller: str) -> Mapping[str, int]:
        """The caller's models, each with the second since 1970 at which it was made."""

    async def aclose(self) -> None:
        """Free what is held."""


def collectors_of(extension: Plugin | None) -> Sequence[Collector]:
    """The extension's own figures for Prometheus, its `collectors`, if it has any."""
    found: Sequence[Collector] = getattr(extension, "collectors", ())
    return found


class PluginGroup:
    """Several extensions as one; of equal names the first one's model is found."""

    def __init__(self, *extensions: Plugin) -> None:
        self._all = extensions
        self.routes: tuple[PluginRoute, ...] = tuple(route for each in extensions for route in each.routes)
        self.collectors: tuple[Collector, ...] = tuple(one for each in extensions for one in collectors_of(each))

    def find(self, name: str, caller: str) -> Model | None:
        """The caller's model of this name, whichever extension has it."""
        return next((model for each in self._all if (model := each.find(name, caller)) is not None), None)

    def names(self, caller: str) -> Mapping[str, int]:
        """The caller's models of all extensions."""
        return {name: at for each in reversed(self._all) for name, at in each.names(caller).items()}

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Every extension is told."""
        for each in self._all:
            each.answered(id, request, completion)

    async def aclose(self) -> None:
        """Close all, in the order they were given."""
        for each in self._all:
            await each.aclose()


class ServedModels(Mapping[str, Model]):
    """The models that the server was started with, and those that the extension has for whoever asks."""

    def __init__(self, fixed: Mapping[str, Model], extension: Plugin) -> None:
        self._fixed, self._extension = fixed, extension

    def __getitem__(self, name: str) -> Model:
        if name in self._fixed:
            return self._fixed[name]
        found = self._extension.find(name, caller_digest())
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._fixed
        yield from (name for name in self._extension.names(caller_digest()) if name not in self._fixed)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def to_route(extra: PluginRoute) -> Route:
    """The route in the words of the web framework."""

    async def respond(request: HttpRequest) -> Response:
        answer = await extra.answer(PluginRequest(request))
        if isinstance(answer, dict):
            return JSONResponse(answer)
        if isinstance(answer, TextResponse):
            return Response(answer.content, media_type=answer.media_type)
        # Never shown by a browser as a page of this server: whoever uploaded it chose what is in it.
        safe = {"x-content-type-options": "nosniff"}
        kind = "application/octet-stream"
        return FileResponse(answer.path, filename=answer.filename, media_type=kind, headers=safe)

    return Route(extra.path, respond, methods=[extra.method])
