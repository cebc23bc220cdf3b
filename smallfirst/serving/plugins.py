"""Plugins add routes, models and metrics to the server, and see every answer.

`smallfirst serve` loads the plugins of installed packages, which name a factory in their pyproject.toml:

    [project.entry-points."smallfirst.serving_plugins"]
    my_plugin = "my_package.module:create_plugin"
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prometheus_client.registry import Collector
from starlette.datastructures import FormData as FormData
from starlette.datastructures import UploadFile as UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse as FileResponse
from starlette.responses import JSONResponse
from starlette.responses import Response as Response
from starlette.routing import Route

from smallfirst.base.extensions import Registry
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.protocol import open_stream as open_stream
from smallfirst.serving.admission import Admission as Admission
from smallfirst.serving.admission import body_chunks, read_body
from smallfirst.serving.auth import caller_owner
from smallfirst.serving.auth import current_caller as current_caller
from smallfirst.serving.errors import ApiError as ApiError
from smallfirst.serving.errors import validation_error as validation_error
from smallfirst.serving.wire import parse_json_object

_log = logging.getLogger("smallfirst.serving")

MAX_FIELDS, MAX_FIELD_BYTES = 8, 4096
"""Of a form, beside its file."""


class PluginRequest:
    """One request to a plugin's route."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self.caller = caller_owner()
        """Owner of what the caller makes: stays when a key is rotated; empty where the server asks for none."""
        self.caller_name = current_caller().name
        """Name of the caller's key; empty where the server asks for none."""
        self.may_judge = current_caller().may_judge
        """True if the caller's verdicts on answers of others count."""
        self.role = current_caller().policy.role
        self.headers: Mapping[str, str] = request.headers
        """By name in lower case."""
        self.path_params: Mapping[str, str] = request.path_params
        self.query: Sequence[tuple[str, str]] = request.query_params.multi_items()
        """Names and values after the question mark."""

    async def json(self, *, max_bytes: int) -> dict[str, Any]:
        """Return the body as a JSON object. Raise ApiError 400, 413 or 415, and ClientDisconnected."""
        body = await read_body(self._request.scope, self._request.receive, max_bytes=max_bytes)
        return parse_json_object(body)

    async def form(self, *, max_bytes: int) -> FormData:
        """Return a form with one file, which is on disk. Raise ApiError 400, 413 or 415, and ClientDisconnected.

        A broken form is still read to its end, so that the client gets the reason. `FormData.close` removes the file.
        """
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise ApiError(415, "The body must be sent as Content-Type: multipart/form-data.")
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "Compressed bodies are not accepted.")
        chunks = body_chunks(self._request.receive, max_bytes=max_bytes, max_read_bytes=2 * max_bytes)
        try:
            return await MultiPartParser(
                self._request.headers, chunks, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
            ).parse()
        except MultiPartException as error:
            async for _ in chunks:
                pass
            raise ApiError(400, f"The form cannot be read: {error.message}", code="invalid_form") from None


PluginResponse = dict[str, Any] | Response
"""A JSON object, or any response of Starlette."""


class PluginRoute(NamedTuple):
    """A path that a plugin answers."""

    method: str
    path: str
    """In Starlette's syntax: /v1/files/{file_id}."""
    answer: Callable[[PluginRequest], Awaitable[PluginResponse] | PluginResponse]
    """Returns the response or raises ApiError; a plain function, such as one that reads files, runs in a thread."""
    role: Literal["public", "user", "judge", "admin"] = "admin"
    """Who may use it: everybody, any key, keys with the role judge or admin, or only admin. A public path has no
    parameters, and what it answers no data."""


class Plugin:
    """Base class of plugins, which does nothing: a plugin overrides what it needs."""

    routes: Sequence[PluginRoute] = ()
    collectors: Sequence[Collector] = ()

    def find(self, name: str, caller: str) -> Model | None:
        return None

    def names(self, caller: str) -> Mapping[str, int]:
        """Return the caller's models, each with its creation time in seconds since 1970."""
        return {}

    def describe(self) -> Mapping[str, str]:
        """Return by model who answers under its name and what is promised, in a sentence; others are left out."""
        return {}

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Take note of an answer that is in the ledger. It must be quick: longer work goes into a task of its own."""

    async def refresh(self) -> None:
        """Bring what metrics show up to date, where other processes change it."""

    def started(self) -> None:
        """Begin work in the background: the server accepts connections now."""

    async def aclose(self) -> None:
        """Free what is held."""


class PluginContext(NamedTuple):
    """What `smallfirst serve` tells a plugin's factory."""

    models: Mapping[str, Model]
    """The served models by name; they may change while the server runs."""
    enabled: bool
    """True if the plugin was named with `--plugin`; a plugin that costs something should wait for that."""
    bases: tuple[str, ...] = ()
    """Models that may be fine-tuned, each NAME or NAME=FOLDER."""


SERVING_PLUGINS: Registry[Callable[[PluginContext], Plugin | None]] = Registry(
    "smallfirst.serving_plugins", {}, noun="serving plugin"
)
"""Factories of plugins by name; a factory returns None where its plugin is not wanted."""


def installed_plugins(
    models: Mapping[str, Model], enabled: Collection[str] = (), bases: Sequence[str] = ()
) -> list[Plugin]:
    """Create the plugins of installed packages. Raise ConfigError for an enabled name that none of them has."""
    for name in enabled:
        SERVING_PLUGINS.check(name, where="--plugin")
    created = (create(PluginContext(models, name in enabled, tuple(bases))) for name, create in SERVING_PLUGINS)
    return [plugin for plugin in created if plugin is not None]


class PluginGroup(Plugin):
    """Several plugins as one."""

    def __init__(self, plugins: Sequence[Plugin] = ()) -> None:
        self._plugins = plugins
        self.routes = tuple(route for each in plugins for route in each.routes)
        self.collectors = tuple(collector for each in plugins for collector in each.collectors)

    def find(self, name: str, caller: str) -> Model | None:
        return next((model for each in self._plugins if (model := each.find(name, caller)) is not None), None)

    def names(self, caller: str) -> Mapping[str, int]:
        return {name: at for each in reversed(self._plugins) for name, at in each.names(caller).items()}

    def describe(self) -> Mapping[str, str]:
        return {name: text for each in reversed(self._plugins) for name, text in each.describe().items()}

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Tell every plugin; one that fails is logged, since the answer is recorded and must reach its client."""
        for each in self._plugins:
            try:
                each.answered(id, request, completion)
            except Exception:
                _log.exception("%s: the plugin %s failed", id, type(each).__name__)

    async def refresh(self) -> None:
        for each in self._plugins:
            await each.refresh()

    async def aclose(self) -> None:
        for each in self._plugins:
            await each.aclose()


class ServedModels(Mapping[str, Model]):
    """The models that the current caller may use: those the server was started with, and those of plugins."""

    def __init__(self, models: Mapping[str, Model], plugins: Plugin) -> None:
        self._models, self._plugins = models, plugins

    def __getitem__(self, name: str) -> Model:
        caller = current_caller()
        if caller.may_use(name):
            found = self._models.get(name)
            if found is not None or (found := self._plugins.find(name, caller.owner)) is not None:
                return found
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        caller = current_caller()
        names = dict.fromkeys([*self._models, *self._plugins.names(caller.owner)])
        return (name for name in names if caller.may_use(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def own_names(self) -> list[str]:
        """Return the names of the server's own models that the caller may use, without those of plugins."""
        return [name for name in self._models if current_caller().may_use(name)]


def starlette_route(route: PluginRoute) -> Route:
    """Return a plugin's route as one of the web framework."""

    async def respond(request: HttpRequest) -> Response:
        if inspect.iscoroutinefunction(route.answer):
            answer = await route.answer(PluginRequest(request))
        else:
            answer = await asyncio.to_thread(route.answer, PluginRequest(request))
        return JSONResponse(answer) if isinstance(answer, dict) else answer

    return Route(route.path, respond, methods=[route.method])
