"""An OpenAI-compatible server for any Models: small, large and a Router over both, side by side.

One process and one event loop: a model that computes inside `complete` blocks all requests.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from threadpoolctl import threadpool_limits

from smallfirst import __version__
from smallfirst.base.errors import ConfigError
from smallfirst.ledger.keys import KeyPolicy, KeyStore, home_key_store
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Model
from smallfirst.serving import completions
from smallfirst.serving.admission import Admission
from smallfirst.serving.auth import CHAT_PATH, PUBLIC_PATHS, USER_PATHS, AuthMiddleware, caller_owner
from smallfirst.serving.errors import ApiError, ClientDisconnected, model_not_found, to_api_error
from smallfirst.serving.plugins import Plugin, PluginGroup, ServedModels, starlette_route
from smallfirst.serving.request_lifecycle import AppContext, Handler, Metrics, ModelEndpoint, Readiness
from smallfirst.serving.server import Server, listen, run
from smallfirst.serving.settings import ServeSettings, check_settings
from smallfirst.serving.wire import model_entry

_SERVED_NAME = re.compile(r"[A-Za-z0-9._/@:-]{1,128}")
_HANDLERS: dict[str, tuple[str, Handler]] = {
    CHAT_PATH: ("chat/completions", completions.chat),
    "/v1/completions": ("completions", completions.completion),
    **{path: ("invocations", completions.invoke) for path in completions.INVOCATION_PATHS},
}
"""By path: the name of the route in the metrics, and the handler of a POST."""


def build_app(
    models: Mapping[str, Model],
    *,
    ledger: Ledger,
    settings: ServeSettings,
    plugins: Sequence[Plugin] = (),
    key_store: KeyStore | None = None,
) -> Starlette:
    """Return the web application that serves `models`. Its caller closes the models, the plugins and the ledger.

    Raise ConfigError for unsafe settings, for names that no client could send, and if there are neither models nor
    plugins. Setting `app.state.readiness.stopping` to True refuses every later request.
    """
    check_settings(settings, key_required=key_store is not None and key_store.key_required)
    if not models and not plugins:
        raise ConfigError("no model to serve", hint="give at least one name and Model")
    _check_names(models)
    context = _create_context(models, ledger, settings, PluginGroup(plugins))
    routes = [
        Route("/health", _health, methods=["GET"]),
        *_monitoring_routes(context),
        *_model_routes(context, models),
        *map(starlette_route, context.plugins.routes),
        *(Route(path, ModelEndpoint(context, *found), methods=["POST"]) for path, found in _HANDLERS.items()),
    ]
    added: dict[str, set[str]] = {"public": set(), "user": set(), "judge": set(), "admin": set()}
    for route in context.plugins.routes:
        added[route.role].add(route.path.partition("{")[0].rstrip("/") or "/")
    authentication = Middleware(
        AuthMiddleware,
        settings=settings,
        key_store=key_store,
        open_paths=PUBLIC_PATHS | added["public"],
        user_paths=USER_PATHS | added["user"],
        judge_paths=added["judge"],
    )
    app = Starlette(
        routes=routes,
        middleware=[authentication],
        exception_handlers={
            HTTPException: _http_error,
            ApiError: _api_error,
            ClientDisconnected: _api_error,
            Exception: _api_error,
        },
    )
    app.router.redirect_slashes = False  # a redirect would be built from the client's Host header
    app.state.readiness = context.readiness
    return app


def serve(
    models: Mapping[str, Model],
    *,
    ledger: Ledger,
    settings: ServeSettings,
    plugins: Sequence[Plugin] = (),
    key_store: KeyStore | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; then finish running requests and close models and plugins.

    Keys are those of the state folder unless another `key_store` is given: no way to start a server ignores them.
    From the signal on new requests are refused and running ones have `settings.drain_s` seconds; a second signal stops
    at once. The ledger stays open: it belongs to the caller. Raise ConfigError if the settings are unsafe or the
    address cannot be used.
    """
    keys = key_store or home_key_store(ledger)
    app = build_app(models, ledger=ledger, settings=settings, plugins=plugins, key_store=keys)
    listener = listen(settings.host, settings.port)
    names = ", ".join(models) or "models of its plugins"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    print(f"smallfirst serves {names} at {address}/v1", flush=True)
    for name, text in PluginGroup(plugins).describe().items():
        print(f"{name}: {text}", flush=True)
    if any(route.path == "/" for plugin in plugins for route in plugin.routes):
        print(f"its page: {address}/", flush=True)

    def stopping() -> None:
        app.state.readiness.stopping = True

    start_background_work(ledger, plugins)
    run(app, listener, drain_s=settings.drain_s, stopping=stopping, held=[*models.values(), *plugins])
    print(f"smallfirst stopped; the ledger is {ledger.place}", flush=True)


def start_background_work(ledger: Ledger, plugins: Sequence[Plugin]) -> None:
    """Begin what runs beside the requests of a server: erasing old bodies, noting the uptime, work of plugins.

    NumPy's products get one thread: small ones gain nothing from a second, which waits for the next on a busy core.
    """
    threadpool_limits(1, user_api="blas")
    ledger.start()
    for plugin in plugins:
        plugin.started()


def _create_context(
    models: Mapping[str, Model], ledger: Ledger, settings: ServeSettings, plugins: PluginGroup
) -> AppContext:
    admission = Admission(
        in_flight=settings.max_in_flight, queue=settings.max_queue, tokens=settings.max_prompt_tokens_in_flight
    )
    metrics = Metrics(plugins.collectors)
    metrics.add_gauge("smallfirst_requests_in_flight", "Answers under way or waiting.", lambda: admission.places.used)
    metrics.add_gauge(
        "smallfirst_prompt_tokens_in_flight", "Their prompt tokens, estimated.", lambda: admission.prompt_tokens.used
    )
    readiness = Readiness(models, ledger.ready)
    return AppContext(ServedModels(models, plugins), ledger, settings, admission, metrics, readiness, plugins, {})


def _model_routes(context: AppContext, fixed: Mapping[str, Model]) -> list[Route]:
    started = int(time.time())

    def creation_times() -> dict[str, int]:
        added = context.plugins.names(caller_owner())
        times = {**added, **dict.fromkeys(fixed, started)}
        return {name: at for name, at in times.items() if name in context.models}

    async def list_models(_: HttpRequest) -> JSONResponse:
        times, about = await asyncio.to_thread(creation_times), context.plugins.describe()
        entries = [model_entry(name, at, about.get(name, "")) for name, at in times.items()]
        return JSONResponse({"object": "list", "data": entries})

    async def retrieve_model(request: HttpRequest) -> JSONResponse:
        name, times = request.path_params["name"], await asyncio.to_thread(creation_times)
        if name not in times:
            raise model_not_found(name, times)
        return JSONResponse(model_entry(name, times[name], context.plugins.describe().get(name, "")))

    return [
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", retrieve_model, methods=["GET"]),
    ]


def _monitoring_routes(context: AppContext) -> list[Route]:
    async def ready(_: HttpRequest) -> JSONResponse:
        is_ready = await context.readiness.check()
        return JSONResponse({"status": "ready" if is_ready else "not ready"}, status_code=200 if is_ready else 503)

    async def metrics(_: HttpRequest) -> PlainTextResponse:
        await context.plugins.refresh()
        return PlainTextResponse(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/ready", ready, methods=["GET"]), Route("/metrics", metrics, methods=["GET"])]


def _check_names(models: Mapping[str, Model]) -> None:
    for name in models:
        if not _SERVED_NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be a served name", hint="use 1 to 128 of the characters A-Z a-z 0-9 . _ / @ : -"
            )


async def _health(_: HttpRequest) -> JSONResponse:
    return JSONResponse({"status": "ok", "version": __version__})


async def _http_error(request: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = ApiError(405, f"{request.method} is not allowed on this path.", code="method_not_allowed")
    else:
        refusal = ApiError(error.status_code, "There is nothing at this path.", code="not_found")
    refusal.headers.update(error.headers or {})
    return await _api_error(request, refusal)


async def _api_error(_: HttpRequest, error: Exception) -> JSONResponse:
    return to_api_error(error, "").response()


class Address(NamedTuple):
    """Address and key of an endpoint."""

    base_url: str
    """Up to and including `/v1`."""
    key: str = ""


@contextmanager
def serve_on_loopback(models: Mapping[str, Model]) -> Iterator[Address]:
    """Yield the address of a server of `models`; then stop it, close the models and delete its ledger."""
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        ledger = Ledger(Path(folder) / "ledger.db")
        keys = KeyStore(ledger)
        _, key = keys.create("loopback", KeyPolicy())
        app = build_app(models, ledger=ledger, settings=ServeSettings(port=0, max_queue=1024), key_store=keys)
        # Signals stay with the process: uvicorn takes them in the main thread only.
        server = Server(app, stopping=lambda: None)
        work = server.serve_and_close(listener, drain_s=0, held=list(models.values()))
        thread = threading.Thread(target=asyncio.run, args=(work,), name="loopback", daemon=True)
        thread.start()
        try:
            yield Address(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", key)
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()
            ledger.close()
