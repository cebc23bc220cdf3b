"""The door: each request gets an id, each path but /health needs a key, before any route is found.

The decision reads `scope["path"]`, which the server parsed, and never a URL put together from
headers that the client wrote. Without keys (loopback only) the Host header must name this machine,
so that a web page whose name was pointed at 127.0.0.1 cannot talk to the server; and a browser must
not send for a page from elsewhere, since it asks nobody before it posts a form.
"""

from __future__ import annotations

import json
import uuid
from contextvars import ContextVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.serving.keys import hash_key, key_matches
from smallfirst.serving.settings import ServeSettings, is_loopback
from smallfirst.serving.wire import WireError

CHAT_PATH = "/v1/chat/completions"
_OPEN_PATHS = frozenset({"/health"})
_caller: ContextVar[str] = ContextVar("caller", default="")


def caller() -> str:
    """Who sent the request that is worked on: SHA-256 in hex of the key; empty where no key is asked for."""
    return _caller.get()


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
            _caller.set(hash_key(_key(Headers(scope=scope))) if self._hashes else "")
            await self._app(scope, receive, with_id)
        else:
            await _refuse(refusal, with_id)

    def _refusal(self, scope: Scope) -> WireError | None:
        if scope["path"] in _OPEN_PATHS:
            return None
        headers = Headers(scope=scope)
        if not self._hashes:
            return _not_local(headers)
        key = _key(headers)
        if not key:
            return _unauthorised("No API key was given; send it as Authorization: Bearer KEY.")
        if not key_matches(key, self._hashes):
            return _unauthorised("The API key is not known here.")
        return None


def _key(headers: Headers) -> str:
    """The key as the client sent it; empty if it sent none, or two."""
    given = headers.getlist("authorization")
    scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else ""


def _not_local(headers: Headers) -> WireError | None:
    """The refusal of a request that did not come from this machine's own programs and pages."""
    if not _names_this_machine(headers.get("host", "")):
        what = "the Host header names another"
        return WireError(
            403, f"Without API keys only requests to localhost are answered; {what}.", code="host_not_allowed"
        )
    if all(_names_this_machine(origin.partition("://")[2]) for origin in headers.getlist("origin")):
        return None
    return WireError(403, "Without API keys pages from elsewhere are not answered.", code="origin_not_allowed")


def _names_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


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
