"""An OpenAI-compatible server for any Models: small, large and a Router over both, side by side.

    POST /v1/chat/completions   an answer, whole or streamed
    GET  /v1/models[/NAME]      what is served
    GET  /health                alive, and which version (needs no key)

An Extension adds routes, and models that are looked up for each request.
One process and one event loop: models wait on the network or work in their own threads and
processes. The price is that a model which computes inside `complete` holds up everybody.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from smallfirst.errors import ConfigError
from smallfirst.models.model import Model
from smallfirst.serving.answers import model_entry
from smallfirst.serving.chat import LAST_WORDS_S, ChatEndpoint
from smallfirst.serving.extension import Extension, Served, as_route
from smallfirst.serving.guard import CHAT_PATH, Guard, caller
from smallfirst.serving.intake import ClientGone
from smallfirst.serving.ledger import Ledger
from smallfirst.serving.settings import ServeSettings, check_settings
from smallfirst.serving.wire import WireError, model_missing

_SERVED_NAME = re.compile(r"[A-Za-z0-9._/@:-]{1,128}")


def build_app(
    models: Mapping[str, Model], *, ledger: Ledger, settings: ServeSettings, extension: Extension | None = None
) -> Starlette:
    """The web application that serves `models`. Its caller closes the models, the ledger and the extension.

    Raises ConfigError for unsafe settings, for names that no client could send, and if there are
    neither models nor an extension.
    """
    check_settings(settings)
    if not models and extension is None:
        raise ConfigError("no model to serve", hint="give at least one name and Model")
    _check_names(models)
    created = int(time.time())
    served = Served(models, extension) if extension else models

    async def made() -> dict[str, int]:
        """All names that the caller may ask for, and since when there are these models."""
        added = await asyncio.to_thread(extension.names, caller()) if extension else {}
        return {**added, **dict.fromkeys(models, created)}

    async def list_models(_: HttpRequest) -> JSONResponse:
        names = await made()
        return JSONResponse({"object": "list", "data": [model_entry(name, at) for name, at in names.items()]})

    async def retrieve_model(request: HttpRequest) -> JSONResponse:
        name, names = request.path_params["name"], await made()
        if name not in names:
            return _error(model_missing(name, names))
        return JSONResponse(model_entry(name, names[name]))

    chat = ChatEndpoint(served, ledger=ledger, settings=settings, watcher=extension)
    app = Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", retrieve_model, methods=["GET"]),
            Route(CHAT_PATH, chat, methods=["POST"]),
            *map(as_route, extension.routes if extension else ()),
        ],
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers={
            HTTPException: _http_error,
            WireError: _refused,
            ClientGone: _gone,
            Exception: _broken,
        },
    )
    app.router.redirect_slashes = False  # a redirect would be built from the client's Host header
    return app


def serve(
    models: Mapping[str, Model], *, ledger: Ledger, settings: ServeSettings, extension: Extension | None = None
) -> None:
    """Nothing, after SIGINT or SIGTERM, once running requests are done, models and extension are closed.

    New requests are refused from the signal on, running ones have `settings.drain_s` seconds; a
    second SIGINT does not wait. The ledger stays open: it belongs to the caller. Raises ConfigError
    if the settings are unsafe or the address cannot be had.
    """
    app = build_app(models, ledger=ledger, settings=settings, extension=extension)
    listener = _listen(settings.host, settings.port)
    server = _server(app, settings)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises a signal again after it has drained. With these handlers below its own that is
    # harmless, and the process ends with exit code 0.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    names = ", ".join(models) or "what is added to it"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"smallfirst serves {names} at http://{host}:{listener.getsockname()[1]}/v1", flush=True)
    try:
        asyncio.run(_run(server, listener, [*models.values(), *([extension] if extension else [])]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"smallfirst stopped; the ledger is {ledger.path}", flush=True)


async def _run(server: uvicorn.Server, listener: socket.socket, held: Sequence[Model | Extension]) -> None:
    try:
        await server.serve(sockets=[listener])
        if cut_off := server.server_state.tasks:
            # Cancelled at the end of the drain; they still tell their clients and the ledger.
            await asyncio.wait(cut_off, timeout=LAST_WORDS_S)
    finally:
        # A Model may be served under two names; closing it twice is allowed. What watches them ends before they do.
        for one in reversed(held):
            await asyncio.gather(one.aclose(), return_exceptions=True)


def _server(app: ASGIApp, settings: ServeSettings) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=15,  # longer than clients keep idle connections (httpx: 5 s)
        timeout_graceful_shutdown=settings.drain_s,
        h11_max_incomplete_event_size=16 * 1024,
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to already, though nobody answers yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="stop the other server, or choose another port (0 takes a free one)",
        ) from None
    return listener


def _check_names(models: Mapping[str, Model]) -> None:
    for name in models:
        if not _SERVED_NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be a served name",
                hint="use 1 to 128 of the characters A-Z a-z 0-9 . _ / @ : -",
            )


async def _health(_: HttpRequest) -> JSONResponse:
    return JSONResponse({"status": "ok", "version": _version()})


def _version() -> str:
    try:
        return version("smallfirst")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"


def _error(refusal: WireError) -> JSONResponse:
    return JSONResponse(refusal.body, status_code=refusal.status, headers=refusal.headers)


async def _http_error(request: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    method = request.method
    if error.status_code == 405:
        refusal = WireError(405, f"{method} is not allowed on this path.", code="method_not_allowed")
    else:
        refusal = WireError(error.status_code, "There is nothing at this path.", code="not_found")
    refusal.headers.update(error.headers or {})
    return _error(refusal)


async def _refused(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, WireError)
    return _error(error)


async def _gone(_: HttpRequest, error: Exception) -> JSONResponse:
    return _error(WireError(499, "The client left.", code="client_gone"))  # nobody reads it


async def _broken(_: HttpRequest, error: Exception) -> JSONResponse:
    return _error(WireError(500, "Something broke inside the server.", kind="server_error", code="internal_error"))
