"""The door: each request gets an id, each path but /health needs a key, before any route is found.

The decision reads `scope["path"]`, which the server parsed, and never a URL put together from
headers that the client wrote. Paths that are not listed need the role `admin`, so a route that somebody adds is closed
until it is opened here. Without keys (loopback only) the Host header must name this machine,
so that a web page whose name was pointed at 127.0.0.1 cannot talk to the server; and a browser must
not send for a page from elsewhere, since it asks nobody before it posts a form.
"""

from __future__ import annotations

import hmac
import json
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import is_loopback
from smallfirst.serving.auth.key_store import ApiKey, KeyPolicy, KeyStore, KeyStoreUnreadable
from smallfirst.serving.auth.keys import hash_key, key_id, key_matches
from smallfirst.serving.auth.rate_limits import Quota, Quotas, TokenReservation
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.settings import ServeSettings

CHAT_PATH = "/v1/chat/completions"
PUBLIC_PATHS = frozenset({"/health", "/ready"})
"""Answered without a key."""
USER_PATHS = frozenset(
    {CHAT_PATH, "/v1/completions", "/v1/embeddings", "/v1/score", "/v1/models", "/v1/feedback", "/v1/files"}
    | {"/v1/fine_tuning/jobs", "/invocations", "/openapi.json"}
    | {"/endpoints", "/serving-endpoints", "/api/2.0/endpoints", "/api/2.0/serving-endpoints"}
)
"""Answered to any key, and so is what is below them; all else needs the role `admin`."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_KINDS = {CHAT_PATH: "chatcmpl", "/v1/completions": "cmpl"}
"""How ids of answers begin, as OpenAI's do."""
_NOBODY = "0" * 64
"""What a key of an unknown id is compared with, so that it takes as long."""


class Caller(NamedTuple):
    """Who sent the request that is worked on."""

    digest: str = ""
    """SHA-256 in hex of the key; empty where no key is asked for."""
    id: str = ""
    """Prefix id of the key, which may be logged; empty for a key that is not of the keyring."""
    terms: KeyPolicy = KeyPolicy(role="admin")
    """What the key allows; where no key is asked for, everything."""
    allowance: Quota | None = None
    """What is left of its limits; None for one without."""

    def may_use(self, name: str) -> bool:
        """True if the key is for this served name."""
        return not self.terms.models or name in self.terms.models

    def tokens(self, estimate: int) -> AbstractContextManager[TokenReservation]:
        """The bill of one request, as `Allowance.tokens`. Raises WireError 429."""
        return (
            nullcontext(TokenReservation(None, estimate)) if self.allowance is None else self.allowance.tokens(estimate)
        )


_ANYBODY = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=_ANYBODY)


def current_caller() -> Caller:
    """Who sent the request that is worked on."""
    return _caller.get()


def caller_digest() -> str:
    """SHA-256 in hex of the caller's key; empty where no key is asked for."""
    return _caller.get().digest


class PermittedModels(Mapping[str, Model]):
    """Served models as the caller may see them: a name that the key is not for is not there."""

    def __init__(self, served: Mapping[str, Model]) -> None:
        """A view of `served`, decided anew for each request."""
        self._served = served

    def __getitem__(self, name: str) -> Model:
        if not current_caller().may_use(name):
            raise KeyError(name)
        return self._served[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._served if current_caller().may_use(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class AuthMiddleware:
    """ASGI middleware in front of all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServeSettings,
        keyring: KeyStore | None = None,
        open_paths: Collection[str] = PUBLIC_PATHS,
        user_paths: Collection[str] = USER_PATHS,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        """Lets requests through to `app` that `settings` and `keyring` allow.

        With `allowed_hosts` the Host header must name one of them, open paths aside; ports do not count.
        """
        self._app = app
        self._hashes = settings.api_keys_sha256
        self._keyring = keyring
        self._open, self._user = frozenset(open_paths), frozenset(user_paths)
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._allowances = Quotas()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing; the request was passed on, with `scope["smallfirst.id"]` set, or refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = _KINDS.get(scope["path"], "req")
        id = f"{kind}-{uuid.uuid4().hex}"
        scope["smallfirst.id"] = id
        limits: Callable[[], Mapping[str, str]] = dict

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = id
                headers.update(limits())
            await send(message)

        try:
            asking = self._let_in(scope)
            _caller.set(asking)
            if (allowance := asking.allowance) is None:
                await self._app(scope, receive, with_id)
                return
            limits = allowance.headers
            with allowance.request():
                await self._app(scope, receive, with_id)
        except ApiError as refusal:
            # From the door alone: what the routes raise is answered inside.
            await _refuse(refusal, with_id)

    def _let_in(self, scope: Scope) -> Caller:
        """Who asks. Raises WireError for whoever is not let in."""
        headers, path = Headers(scope=scope), scope["path"]
        if path in self._open:
            # A probe of an orchestrator calls the machine by its address, whatever names it has.
            return Caller(terms=KeyPolicy())
        self._check_host(headers)
        if not self._hashes and (self._keyring is None or not self._keyring.demands_keys):
            _check_local(headers)
            return _ANYBODY
        asking = self._owner(_key(headers))
        if asking.terms.role != "admin" and not self._is_for_users(path):
            raise ApiError(403, "This path needs a key with the role admin.", code="admin_only")
        return asking

    def _is_for_users(self, path: str) -> bool:
        return path in self._user or any(path.startswith(f"{above}/") for above in self._user)

    def _owner(self, presented: str) -> Caller:
        """Whose key it is. Raises WireError 401."""
        if not presented:
            raise _unauthorised("No API key was given; send it as Authorization: Bearer KEY.")
        digest, known = hash_key(presented), self._known(presented)
        fits = hmac.compare_digest(digest, known.sha256 if known else _NOBODY)
        fixed = key_matches(presented, self._hashes)
        if known is not None and fits:
            if (state := known.state()) != "active":
                raise _unauthorised(f"The API key {known.id} is {state}.")
            assert self._keyring is not None
            self._keyring.used(known.id)
            return Caller(digest, known.id, known.terms, self._allowances.of(known.id, known.terms))
        if fixed:
            return Caller(digest)
        raise _unauthorised("The API key is not known here.")

    def _known(self, presented: str) -> ApiKey | None:
        """The entry that the key's id names. Raises WireError 503 if the keyring is there and cannot be read."""
        try:
            return self._keyring.find(key_id(presented)) if self._keyring else None
        except KeyStoreUnreadable:
            if key_matches(presented, self._hashes):
                return None
            raise ApiError(
                503, "Keys cannot be checked at the moment.", kind="server_error", code="keys_unreadable"
            ) from None

    def _check_host(self, headers: Headers) -> None:
        if self._hosts and _host_name(headers) not in self._hosts:
            raise ApiError(403, "The Host header names another server.", code="host_not_allowed")


def _key(headers: Headers) -> str:
    """The key as the client sent it; empty if it sent none, or two."""
    given = headers.getlist("authorization")
    scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else ""


def _check_local(headers: Headers) -> None:
    """Nothing for a request of this machine's own programs and pages. Raises WireError 403 for another."""
    if not is_loopback(_host_name(headers)):
        what = "the Host header names another"
        raise ApiError(
            403, f"Without API keys only requests to localhost are answered; {what}.", code="host_not_allowed"
        )
    if not all(is_loopback(_name_in(origin.partition("://")[2])) for origin in headers.getlist("origin")):
        raise ApiError(403, "Without API keys pages from elsewhere are not answered.", code="origin_not_allowed")


def _host_name(headers: Headers) -> str:
    """The name in the one Host header; empty if there is none, or two."""
    given = headers.getlist("host")
    return _name_in(given[0]) if len(given) == 1 else ""


def _name_in(host: str) -> str:
    """`localhost` from "localhost:8000", in lower case; empty for what is no host."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found else ""


def _unauthorised(message: str) -> ApiError:
    refusal = ApiError(401, message, code="invalid_api_key")
    refusal.headers["www-authenticate"] = "Bearer"
    return refusal


async def _refuse(refusal: ApiError, send: Send) -> None:
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(n.encode(), v.encode()) for n, v in {**headers, **refusal.headers}.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
