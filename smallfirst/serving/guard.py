"""The door: each request gets an id, each path but /health needs a key, before any route is found.

The decision reads `scope["path"]`, which the server parsed, and never a URL put together from
headers that the client wrote. Without keys (loopback only) the Host header must name this machine,
so that a web page whose name was pointed at 127.0.0.1 cannot talk to the server.
"""

from __future__ import annotations

import json
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.serving.keys import key_matches
from smallfirst.serving.settings import ServeSettings, is_loopback
from smallfirst.serving.wire import WireError

CHAT_PATH = "/v1/chat/completions"
_OPEN_PATHS = frozenset({"/health"})


class Guard:
    """ASGI middleware in front of all routes."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings) -> None:
        """Lets requests through to `app` that `settings` allows."""
        self._app = app
        self._hashes = settings.api_keys_sha256

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing; the request was passed on, with `scope["smallfirst.id"]` set, or refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = "chatcmpl" if scope["path"] == CHAT_PATH else "req"
        id = f"{kind}-{uuid.uuid4().hex}"
        scope["smallfirst.id"] = id

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, with_id)
        else:
            await _refuse(refusal, with_id)

    def _refusal(self, scope: Scope) -> WireError | None:
        if scope["path"] in _OPEN_PATHS:
            return None
        headers = Headers(scope=scope)
        if not self._hashes:
            return None if _names_this_machine(headers.get("host", "")) else _foreign_host()
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not key:
            return _unauthorised("No API key was given; send it as Authorization: Bearer KEY.")
        if not key_matches(key.strip(), self._hashes):
            return _unauthorised("The API key is not known here.")
        return None


def _names_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _foreign_host() -> WireError:
    return WireError(
        403,
        "Without API keys only requests to localhost are answered; the Host header names another.",
        code="host_not_allowed",
    )


def _unauthorised(message: str) -> WireError:
    refusal = WireError(401, message, code="invalid_api_key")
    refusal.headers["www-authenticate"] = "Bearer"
    return refusal


async def _refuse(refusal: WireError, send: Send) -> None:
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(n.encode(), v.encode()) for n, v in {**headers, **refusal.headers}.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
