"""Authentication: each request gets an id, and each path but /health and /ready needs a key before it is routed.

Paths that are not listed need the role `admin`, so a new route is closed until it is opened. Without keys, on loopback
only, the Host and Origin headers must name this machine, so that no web page from elsewhere can talk to the server.
"""

from __future__ import annotations

import hmac
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.models.remote.config import is_loopback
from smallfirst.serving.admission import RETRY_AFTER_S, Shares
from smallfirst.serving.auth.keys import ApiKey, KeyPolicy, KeyStore, KeyStoreUnreadable, hash_key, key_id, key_matches
from smallfirst.serving.auth.rate_limits import Quota, Quotas
from smallfirst.serving.error_responses import ledger_away
from smallfirst.serving.ledger.database import LedgerAway
from smallfirst.serving.ledger.shared_state import SharedState
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.response_head import header_value
from smallfirst.serving.settings import ServeSettings

CHAT_PATH = "/v1/chat/completions"
PUBLIC_PATHS = frozenset({"/health", "/ready"})
"""Open without a key."""
USER_PATHS = frozenset(
    {CHAT_PATH, "/v1/completions", "/v1/embeddings", "/v1/score", "/v1/models"}
    | {"/invocations", "/endpoints", "/serving-endpoints"}
)
"""Open to any key, with all paths below them; every other path needs the role `admin`."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_ID_PREFIXES = {CHAT_PATH: "chatcmpl", "/v1/completions": "cmpl"}
"""Prefixes of response ids, as OpenAI has them."""
_NO_HASH = "0" * 64
"""A key of an unknown id is compared with this, so that it takes as long."""


class Caller(NamedTuple):
    """The key behind the current request."""

    owner: str = ""
    """Owner of what the key makes: kept by a rotated key, the key's hash where it is in no key store; empty where no
    key is asked for."""
    id: str = ""
    """Id of the key, which may be logged; empty for a key that is not in the key store."""
    policy: KeyPolicy = KeyPolicy(role="admin")
    """What the key allows; where no key is asked for, everything."""
    quota: Quota = Quota(KeyPolicy())
    """What is left of its limits, if it has any."""
    name: str = ""
    """Name of the key; empty for a key that is not in the key store."""

    @property
    def may_judge(self) -> bool:
        return self.policy.role in ("judge", "admin")

    def may_use(self, name: str) -> bool:
        return not self.policy.models or name in self.policy.models


_NO_KEY_NEEDED = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=_NO_KEY_NEEDED)


def current_caller() -> Caller:
    """Return who sent the current request."""
    return _caller.get()


def caller_owner() -> str:
    """Return the owner behind the caller's key; empty where no key is asked for."""
    return _caller.get().owner


class KeyCheck:
    """The keys that open a server."""

    def __init__(self, hashes: Sequence[str], key_store: KeyStore | None, state: SharedState | None = None) -> None:
        """`state` has what is left of limits for all processes; without it they are those of this one."""
        self._hashes, self._key_store = hashes, key_store
        self._quotas = Quotas(state=state)

    async def refresh(self) -> None:
        """Read keys that are kept in a database, unless they were read a moment ago."""
        if self._key_store is not None:
            await self._key_store.refresh()

    @property
    def needed(self) -> bool:
        return bool(self._hashes) or (self._key_store is not None and self._key_store.key_required)

    def caller(self, presented: str) -> Caller:
        """Return whose key it is. Raise ApiError 401 for none or an unknown one, 503 if the keys cannot be read."""
        if not presented:
            raise _unauthorised("No API key was given; send it as Authorization: Bearer KEY.")
        digest, known = hash_key(presented), self._known(presented)
        fits = hmac.compare_digest(digest, known.sha256 if known else _NO_HASH)
        fixed = key_matches(presented, self._hashes)
        if known is not None and fits:
            if (state := known.state()) != "active":
                raise _unauthorised(f"The API key {known.id} is {state}.")
            assert self._key_store is not None
            self._key_store.used(known.id)
            # By name and owner: a rotated key goes on with what its predecessor left.
            quota = self._quotas.of(f"{known.owner}/{known.name}", known.policy)
            return Caller(known.owner, known.id, known.policy, quota, known.name)
        if fixed:
            return Caller(digest)
        raise _unauthorised("The API key is not known to this server.")

    def _known(self, presented: str) -> ApiKey | None:
        try:
            return self._key_store.find(key_id(presented)) if self._key_store else None
        except KeyStoreUnreadable:
            if key_matches(presented, self._hashes):
                return None
            what = "Keys cannot be checked at the moment; try again shortly."
            raise ApiError(
                503, what, kind="server_error", code="keys_unreadable", retry_after_s=RETRY_AFTER_S
            ) from None


class AuthMiddleware:
    """ASGI middleware in front of all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServeSettings,
        key_store: KeyStore | None,
        state: SharedState,
        open_paths: Collection[str],
        user_paths: Collection[str],
        judge_paths: Collection[str],
    ) -> None:
        self._app = app
        self._keys = KeyCheck(settings.api_keys_sha256, key_store, state)
        self._open, self._user, self._judge = frozenset(open_paths), frozenset(user_paths), frozenset(judge_paths)
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        # Twice the places: half of them for bodies on their way, which take none.
        self._requests = Shares(2 * (settings.max_in_flight + settings.max_queue), "requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with `scope["smallfirst.id"]` set, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = _ID_PREFIXES.get(scope["path"], "req")
        id = f"{kind}-{uuid.uuid4().hex}"
        scope["smallfirst.id"] = id
        limits: Callable[[], Mapping[str, str]] = dict
        started = False

        async def with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = id
                headers.update({name: header_value(text) for name, text in limits().items()})
            await send(message)
            started = True

        try:
            if scope["path"] not in self._open:
                await self._keys.refresh()
            caller = self._authenticate(scope)
            _caller.set(caller)
            limits = caller.quota.headers
            with nullcontext() if scope["path"] in self._open else self._requests.hold(caller.owner):
                async with caller.quota.request():
                    await self._app(scope, receive, with_id)
        except (ApiError, LedgerAway) as refusal:
            # Raised here only: Starlette's handlers answer what the routes raise.
            if started:
                raise
            refusal = refusal if isinstance(refusal, ApiError) else ledger_away()
            await refusal.response()(scope, receive, with_id)

    def _authenticate(self, scope: Scope) -> Caller:
        headers, path = Headers(scope=scope), scope["path"]
        if path in self._open:
            # An orchestrator probes the machine by its address, whatever names it has.
            return Caller(policy=KeyPolicy())
        if self._hosts and _host_name(headers.getlist("host")) not in self._hosts:
            raise ApiError(403, "The Host header names another server.", code="host_not_allowed")
        if not self._keys.needed:
            check_local(headers.getlist("host"), headers.getlist("origin"))
            return _NO_KEY_NEEDED
        caller = self._keys.caller(_key(headers))
        open_to = self._user | self._judge if caller.may_judge else self._user
        within = path in open_to or any(path.startswith(f"{above}/") for above in open_to)
        if caller.policy.role != "admin" and not within:
            raise ApiError(403, "This path needs a key with the role admin.", code="admin_only")
        return caller


def _key(headers: Headers) -> str:
    """Return the key that the client sent; empty if it sent none, or two."""
    given = headers.getlist("authorization")
    scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else ""


def check_local(hosts: Sequence[str], origins: Sequence[str]) -> None:
    """Raise ApiError 403 unless the Host and Origin headers name this machine: no page from elsewhere may ask."""
    if not is_loopback(_host_name(hosts)):
        message = "Without API keys only requests to localhost are answered; the Host header names another host."
        raise ApiError(403, message, code="host_not_allowed")
    if not all(is_loopback(_name_in(origin.partition("://")[2])) for origin in origins):
        raise ApiError(403, "Without API keys pages from elsewhere are not answered.", code="origin_not_allowed")


def _host_name(hosts: Sequence[str]) -> str:
    """Return the name in the Host header; empty if there is none, or two."""
    return _name_in(hosts[0]) if len(hosts) == 1 else ""


def _name_in(host: str) -> str:
    """Return `localhost` for "localhost:8000", in lower case; empty for what is no host."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found else ""


def _unauthorised(message: str) -> ApiError:
    refusal = ApiError(401, message, code="invalid_api_key")
    refusal.headers["www-authenticate"] = "Bearer"
    return refusal
