"""Replicas of one server on Ray Serve: the same application in several processes or on several machines.

A request comes to a proxy of Serve, which sends it to a replica; each replica makes the application of
`smallfirst serve` from options given as JSON. What replicas share is the ledger, the keys and the registry.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import ledger_at, ledger_place, state_of
from smallfirst.base.ray_session import ADDRESS, ray_session
from smallfirst.ledger.keys import home_key_store
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Model
from smallfirst.serving.app import build_app, start_background_work
from smallfirst.serving.errors import RETRY_AFTER_S, ApiError, server_error
from smallfirst.serving.plugins import Plugin
from smallfirst.serving.request_lifecycle import ERROR_SEND_TIMEOUT_S
from smallfirst.serving.server import AsyncCloseable, listen
from smallfirst.serving.settings import ServeSettings, check_settings

APPLICATION = "smallfirst"
"""Name of the application in Serve."""
SERVICE = "smallfirst.interfaces.cli.serve:service_of"
"""The function, as MODULE:NAME, that makes a Service of the arguments of `smallfirst serve`."""
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "smallfirst.serving.replicas:edge",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
"""Environment variables of every node that Serve runs on: what its proxies put in front of themselves, and the seconds
in which they must have started (Ray's own 5 are few on a busy machine). A cluster that is started here has them."""
HEALTH_PATH = "/-/healthz"
"""Path at which a proxy of Serve says that it has replicas; no other path of Serve's own is answered."""
_REQUEST_ID = b"x-request-id"
_STEERING = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id", b"x-session-id"}
    | {_REQUEST_ID}
)
"""Headers by which a client could steer Serve."""
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}
_CLOSE_S = 10
"""Seconds that a replica has, after its requests, to close its models; and a cluster to end."""
_POLL_S = 0.02


class Service(NamedTuple):
    """What one server answers with, loaded."""

    models: Mapping[str, Model]
    ledger: Ledger
    settings: ServeSettings
    plugins: Sequence[Plugin]
    folder: Path
    """Folder of the task whose state folder is the server's."""
    place: Path | str


class ReplicaApp:
    """The application of one replica, an ASGI callable; it opens and closes the service with its lifespan."""

    def __init__(self, service: Service) -> None:
        self._service, self._running = service, set[asyncio.Task[Any]]()
        models, ledger, settings, plugins, _, _ = service
        with self._state():
            keys = home_key_store(ledger)
            self._app = build_app(models, ledger=ledger, settings=settings, plugins=plugins, key_store=keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._state():
            if scope["type"] == "lifespan":
                await self._live(receive, send)
                return
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            try:
                await self._app(scope, receive, send)
            finally:
                self._running.discard(task)

    async def stop(self) -> int:
        """Refuse new requests, let running ones finish, cut off those that take longer; return how many were."""
        self._app.state.readiness.stopping = True
        end = time.monotonic() + self._service.settings.drain_s
        while self._running and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        if cut_off := list(self._running):
            for task in cut_off:
                task.cancel()
            await asyncio.wait(cut_off, timeout=ERROR_SEND_TIMEOUT_S)
        return len(cut_off)

    @contextmanager
    def _state(self) -> Iterator[None]:
        """State folder and ledger are those of the service: Serve calls from threads that have not loaded it."""
        with state_of(self._service.folder), ledger_at(self._service.place):
            yield

    async def _live(self, receive: Receive, send: Send) -> None:
        models, ledger, _, plugins, _, _ = self._service
        await receive()
        start_background_work(ledger, plugins)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        held: list[AsyncCloseable] = [*models.values(), *plugins]
        for one in reversed(held):
            await asyncio.gather(one.aclose(), return_exceptions=True)
        await asyncio.to_thread(ledger.close)
        await send({"type": "lifespan.shutdown.complete"})


def application(args: Mapping[str, Any]) -> Any:
    """Return the Serve application: also what a RayService names as its `import_path`, with these `args`.

    `serve`: arguments of `smallfirst serve`; `folder`: where paths among them begin; `replicas` (1); `drain_s`: seconds
    that a replica has to finish its requests (30); `num_gpus`: share of a GPU that a replica holds (0).
    """
    from ray import serve

    # Serve pickles the function below: it holds this text alone, and the replica loads everything else.
    wanted = json.dumps([args.get("service", SERVICE), args.get("folder", ""), list(args["serve"])])
    settings = ServeSettings()

    @serve.deployment(
        name="replica",
        num_replicas=int(args.get("replicas", 1)),
        max_ongoing_requests=2 * (settings.max_in_flight + settings.max_queue),  # the application refuses, not Serve
        graceful_shutdown_timeout_s=int(args.get("drain_s", settings.drain_s)) + _CLOSE_S,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": 1, "num_gpus": float(args.get("num_gpus", 0))},
        logging_config=_QUIET,
    )
    @serve.ingress(lambda: open_replica(wanted))
    class Replica:
        app: ReplicaApp

        async def stop(self) -> int:
            return await self.app.stop()

    return Replica.bind()  # type: ignore[attr-defined]


def open_replica(wanted: str) -> ReplicaApp:
    """Load the service of a replica in this process. Raise ConfigError where its folder is missing."""
    name, folder, arguments = json.loads(wanted)
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"no folder {folder} on {socket.gethostname()}", hint="mount the tasks there on every node")
    if folder:
        os.chdir(folder)
    module, _, function = name.partition(":")
    return ReplicaApp(getattr(import_module(module), function)(arguments))


def serve_replicas(arguments: Sequence[str], n: int, *, settings: ServeSettings, service: str = SERVICE) -> None:
    """Serve with `n` replicas, here or on the cluster at RAY_ADDRESS, until SIGINT or SIGTERM.

    Then new requests are refused, running ones have `settings.drain_s` seconds, and the replicas close their models; a
    second signal stops at once. Raise ConfigError if the settings are unsafe, the address is taken or no replica
    starts.
    """
    check_settings(settings)
    port, here = settings.port, not os.environ.get(ADDRESS)
    if here or not port:
        with listen(settings.host, port) as free:
            port = free.getsockname()[1]
    if here:
        os.environ.update(ENVIRONMENT)
    args = {"service": service, "serve": list(arguments), "folder": str(Path.cwd())}
    with ray_session(num_cpus=max(n, os.cpu_count() or 1)) as ray:
        from ray import serve

        check_ledger(sum(node["Alive"] for node in ray.nodes()))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        n_gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / n)
        http = {"host": settings.host, "port": port, "keep_alive_timeout_s": 75}
        made = application({**args, "replicas": n, "drain_s": settings.drain_s, "num_gpus": n_gpus})
        try:
            serve.start(http_options=http, logging_config=_QUIET)
            handle = serve.run(made, name=APPLICATION, route_prefix="/", logging_config=_QUIET)
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise ConfigError(f"no replica starts: {_reason(str(error))}") from None
        print(f"smallfirst serves with {n} replicas at http://{settings.host}:{port}/v1", flush=True)
        _wait_for_signal(settings.drain_s + 3 * _CLOSE_S)
        handle.broadcast("stop").results(timeout_s=settings.drain_s + _CLOSE_S, return_exceptions=True)
        serve.delete(APPLICATION)
    print("smallfirst stopped", flush=True)


def check_ledger(n_machines: int) -> None:
    """Raise ConfigError where replicas on several machines would each write a file of their own."""
    if n_machines > 1 and isinstance(ledger_place(), Path):
        raise ConfigError(
            f"replicas on {n_machines} machines need one ledger that all of them reach",
            hint="--ledger postgresql://USER@HOST/DATABASE",
        )


def _wait_for_signal(most_s: float) -> None:
    """Return at the first signal. The process ends at the second one, and `most_s` later whatever Ray does."""
    told = threading.Event()

    def note(*_: object) -> None:
        if told.is_set():
            os._exit(1)
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    told.wait()
    last = threading.Timer(most_s, os._exit, (1,))
    last.daemon = True
    last.start()


def _reason(text: str) -> str:
    """Return the last line of the traceback in Serve's message that names an error."""
    named = [line.strip() for line in text.splitlines() if re.match(r"\s*[\w.]*(Error|Missing\w*): ", line)]
    return named[-1] if named else " ".join(text.split())[:300]


class Edge:
    """ASGI middleware around a proxy of Serve: errors of Serve become API errors, and no client's header steers it.

    A request that reached no replica is 503 with Retry-After. One whose replica died is 502 `answer_lost`, which
    OpenAI's clients do not send again, as its answer may be paid; a stream ends without its last chunk.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        if scope["path"].startswith("/-/") and scope["path"] != HEALTH_PATH:
            refusal = ApiError(404, "There is nothing at this path.", code="not_found")
            await refusal.response()(scope, receive, send)
            return
        passes, started, status = scope["path"] == HEALTH_PATH, False, 0

        async def take(message: Message) -> None:
            """Pass on what comes from the application, without the request id that Serve adds to its own."""
            nonlocal passes, started, status
            if message["type"] == "http.response.start":
                status = message["status"]
                ids = [header for header in message["headers"] if header[0].lower() == _REQUEST_ID]
                if len(ids) > 1:
                    passes = True
                    message = {**message, "headers": [header for header in message["headers"] if header is not ids[-1]]}
            if passes:
                started = True
                await send(message)

        headers = [(name, value) for name, value in scope["headers"] if name.replace(b"_", b"-") not in _STEERING]
        try:
            await self._app({**scope, "headers": headers}, receive, take)
        finally:
            if not started:  # Serve's own error was held back, or it had none
                if status in (404, 503):
                    refusal = server_error(503, "No replica is free; try again shortly.", "no_replica", RETRY_AFTER_S)
                else:
                    refusal = server_error(502, "The replica took the request and gave no answer.", "answer_lost")
                    refusal.headers["x-should-retry"] = "false"
                refusal.headers["x-request-id"] = f"req-{uuid.uuid4().hex}"
                await refusal.response()(scope, receive, send)


def edge() -> list[Middleware]:
    """Return what ENVIRONMENT names."""
    return [Middleware(Edge)]
