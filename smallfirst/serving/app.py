"""An OpenAI-compatible server for any Models: small, large and a Router over both, side by side.

    POST /v1/chat/completions   an answer, whole or streamed
    POST /v1/completions        the same for a plain prompt
    POST /v1/embeddings         vectors from a small model
    POST /v1/score              probabilities of all labels
    POST /invocations           MLflow's shapes
    GET  /v1/models[/NAME]      what is served
    GET  /health                alive, and which version (needs no key)
    GET  /ready                 whether models and ledger would answer now (needs no key)
    GET  /metrics               figures for Prometheus (role admin)
    GET  /openapi.json          the routes, for tools

An Extension adds routes, and models that are looked up for each request.
One process and one event loop: models wait on the network or work in their own threads and
processes. The price is that a model which computes inside `complete` holds up everybody.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from smallfirst.errors import ConfigError
from smallfirst.models.protocol import Model
from smallfirst.serving.admission import Admission, ClientDisconnected
from smallfirst.serving.auth.key_store import KeyStore
from smallfirst.serving.auth.middleware import CHAT_PATH, AuthMiddleware, PermittedModels, caller_digest
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.metrics import MEDIA_TYPE, Metrics
from smallfirst.serving.openai.errors import ApiError, model_not_found
from smallfirst.serving.openai.responses import model_entry
from smallfirst.serving.openapi import openapi_document
from smallfirst.serving.plugins import Plugin, ServedModels, collectors_of, to_route
from smallfirst.serving.readiness import Readiness
from smallfirst.serving.request_lifecycle import AppContext, Handler, RequestLifecycle
from smallfirst.serving.routes.completions import CompletionHandler
from smallfirst.serving.routes.embeddings import EmbeddingHandler
from smallfirst.serving.routes.invocations import InvocationHandler
from smallfirst.serving.routes.task_paths import addressed_routes
from smallfirst.serving.server import Closes, listen, run
from smallfirst.serving.settings import ServeSettings, check_settings
from smallfirst.serving.tracing import TraceContextMiddleware

_SERVED_NAME = re.compile(r"[A-Za-z0-9._/@:-]{1,128}")


def build_app(
    models: Mapping[str, Model],
    *,
    ledger: Ledger,
    settings: ServeSettings,
    extension: Plugin | None = None,
    keyring: KeyStore | None = None,
) -> Starlette:
    """The web application that serves `models`. Its caller closes the models, the ledger and the extension.

    Raises ConfigError for unsafe settings, for names that no client could send, and if there are
    neither models nor an extension. `app.state.readiness.stopping` set to true refuses what comes from then on.
    """
    check_settings(settings, demands_keys=keyring is not None and keyring.demands_keys)
    if not models and extension is None:
        raise ConfigError("no model to serve", hint="give at least one name and Model")
    _check_names(models)
    house = _house(models, ledger, settings, extension)
    routes = [
        Route("/health", _health, methods=["GET"]),
        *_looking(house),
        *_catalogue(house.models, models, extension),
        *addressed_routes(house),
        *map(to_route, extension.routes if extension else ()),
        *(Route(path, RequestLifecycle(house, work), methods=["POST"]) for path, work in _works(house).items()),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                AuthMiddleware,
                settings=settings,
                keyring=keyring,
                allowed_hosts=settings.allowed_hosts,
            ),
            Middleware(TraceContextMiddleware),
        ],
        exception_handlers={
            HTTPException: _http_error,
            ApiError: _refused,
            ClientDisconnected: _gone,
            Exception: _broken,
        },
    )
    app.router.redirect_slashes = False  # a redirect would be built from the client's Host header
    app.state.readiness = house.readiness
    return app


def serve(
    models: Mapping[str, Model],
    *,
    ledger: Ledger,
    settings: ServeSettings,
    extension: Plugin | None = None,
    keyring: KeyStore | None = None,
) -> None:
    """Nothing, after SIGINT or SIGTERM, once running requests are done, models and extension are closed.

    New requests are refused from the signal on, running ones have `settings.drain_s` seconds; a
    second signal does not wait. The ledger stays open: it belongs to the caller. Raises ConfigError
    if the settings are unsafe or the address cannot be had.
    """
    app = build_app(models, ledger=ledger, settings=settings, extension=extension, keyring=keyring)
    listener = listen(settings.host, settings.port)
    names = ", ".join(models) or "what is added to it"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"smallfirst serves {names} at http://{host}:{listener.getsockname()[1]}/v1", flush=True)

    def stopping() -> None:
        app.state.readiness.stopping = True

    held: list[Closes] = [*models.values(), *([extension] if extension else [])]
    run(app, listener, drain_s=settings.drain_s, stopping=stopping, held=held)
    print(f"smallfirst stopped; the ledger is {ledger.path}", flush=True)


def _house(
    models: Mapping[str, Model], ledger: Ledger, settings: ServeSettings, extension: Plugin | None
) -> AppContext:
    admission = Admission(
        in_flight=settings.max_in_flight, queue=settings.max_queue, tokens=settings.max_prompt_tokens_in_flight
    )
    meter = Metrics(collectors_of(extension))
    meter.watch("smallfirst_requests_inside", "Requests worked on or waiting.", lambda: admission.inside)
    meter.watch(
        "smallfirst_prompt_tokens_inside", "About how many prompt tokens they hold.", lambda: admission.tokens_in_flight
    )
    served = PermittedModels(ServedModels(models, extension) if extension else models)
    return AppContext(
        served, ledger, settings, admission, meter, Readiness(models, ledger_ready=ledger.ready), extension
    )


def _works(house: AppContext) -> dict[str, Handler]:
    """What a POST to each path does."""
    return {
        CHAT_PATH: CompletionHandler(house, "chat"),
        "/v1/completions": CompletionHandler(house, "text"),
        "/v1/embeddings": EmbeddingHandler(house, "embeddings"),
        "/v1/score": EmbeddingHandler(house, "score"),
        "/invocations": InvocationHandler(house),
    }


def _catalogue(served: Mapping[str, Model], fixed: Mapping[str, Model], extension: Plugin | None) -> list[Route]:
    """The routes that say what is served to the caller."""
    created = int(time.time())

    async def made() -> dict[str, int]:
        """All names that the caller may ask for, and since when there are these models."""
        added = await asyncio.to_thread(extension.names, caller_digest()) if extension else {}
        since = {**added, **dict.fromkeys(fixed, created)}
        for name in served:  # names may come while the server runs
            since.setdefault(name, created)
        return {name: at for name, at in since.items() if name in served}

    async def list_models(_: HttpRequest) -> JSONResponse:
        names = await made()
        return JSONResponse({"object": "list", "data": [model_entry(name, at) for name, at in names.items()]})

    async def retrieve_model(request: HttpRequest) -> JSONResponse:
        name, names = request.path_params["name"], await made()
        if name not in names:
            return _error(model_not_found(name, names))
        return JSONResponse(model_entry(name, names[name]))

    return [
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", retrieve_model, methods=["GET"]),
    ]


def _looking(house: AppContext) -> list[Route]:
    """The routes for whoever watches the server."""

    async def ready(_: HttpRequest) -> JSONResponse:
        well = (await house.readiness.look()).ready
        return JSONResponse({"status": "ready" if well else "not ready"}, status_code=200 if well else 503)

    async def metrics(_: HttpRequest) -> PlainTextResponse:
        return PlainTextResponse(house.meter.shown(), media_type=MEDIA_TYPE)

    async def routes(_: HttpRequest) -> JSONResponse:
        names = await asyncio.to_thread(lambda: list(house.models))
        return JSONResponse(openapi_document(_version(), names))

    found = {"/ready": ready, "/metrics": metrics, "/openapi.json": routes}
    return [Route(path, answer, methods=["GET"]) for path, answer in found.items()]


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


def _error(refusal: ApiError) -> JSONResponse:
    return JSONResponse(refusal.body, status_code=refusal.status, headers=refusal.headers)


async def _http_error(request: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    method = request.method
    if error.status_code == 405:
        refusal = ApiError(405, f"{method} is not allowed on this path.", code="method_not_allowed")
    else:
        refusal = ApiError(error.status_code, "There is nothing at this path.", code="not_found")
    refusal.headers.update(error.headers or {})
    return _error(refusal)


async def _refused(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _error(error)


async def _gone(_: HttpRequest, error: Exception) -> JSONResponse:
    return _error(ApiError(499, "The client left.", code="client_gone"))  # nobody reads it


async def _broken(_: HttpRequest, error: Exception) -> JSONResponse:
    return _error(ApiError(500, "Something broke inside the server.", kind="server_error", code="internal_error"))
