"""Authentication and limits: each request gets an id, and each path but /health and /ready needs a key.

Paths that are not listed need the role `admin`, so a new route is closed until it is opened. Without keys, on loopback
only, the Host and Origin headers must name this machine, so that no web page from elsewhere can talk to the server.

What is left of a key's limits a minute is a row of the database, which one statement draws from. Tokens are reserved by
an estimate before the model works and settled afterwards.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

from sqlalchemy import text
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.ledger.database import Database, LedgerAway
from smallfirst.ledger.keys import ApiKey, KeyPolicy, KeyStore, KeyStoreUnreadable, hash_key, key_id
from smallfirst.models.protocol import Completion
from smallfirst.models.remote.config import is_loopback
from smallfirst.serving.admission import Shares
from smallfirst.serving.errors import RETRY_AFTER_S, ApiError, ledger_away, server_error
from smallfirst.serving.settings import ServeSettings

CHAT_PATH = "/v1/chat/completions"
PUBLIC_PATHS = frozenset({"/health", "/ready"})
"""Open without a key."""
USER_PATHS = frozenset({CHAT_PATH, "/v1/completions", "/v1/models", "/invocations", "/endpoints", "/serving-endpoints"})
"""Open to any key, with all paths below them; every other path needs the role `admin`."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_ID_PREFIXES = {CHAT_PATH: "chatcmpl", "/v1/completions": "cmpl"}
"""Prefixes of response ids, as OpenAI has them."""
_NO_HASH = "0" * 64
"""A key of an unknown id is compared with this, so that it takes as long."""
REFUSED_S = 1.0
"""Seconds after a refusal in which a key without anything left is refused without asking the database."""
_log = logging.getLogger("smallfirst.serving")


class Bucket:
    """A limit of so many units a minute, over all processes of one database.

    It fills evenly and holds a minute's worth. A need of more waits for a full bucket and leaves a debt, which refills
    before the next request passes. A process draws a second's worth at once and keeps what it does not use, so that
    others are refused that much at most.
    """

    def __init__(self, name: str, per_minute: int, database: Database, clock: Callable[[], float]) -> None:
        self.per_minute, self._name, self._database, self._clock = per_minute, name, database, clock
        self._worth = max(1.0, per_minute / 60)
        self._held = 0.0
        """Units that were drawn and not spent; negative: a debt."""
        self._level, self._at_s = float(per_minute), clock()
        """What the database had at a time, as far as this process knows."""
        self._refused_at_s = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def level(self) -> float:
        """Units left as far as is known here; negative in debt."""
        refilled = self._level + max(0.0, self._clock() - self._at_s) * self.per_minute / 60
        return min(float(self.per_minute), min(float(self.per_minute), refilled) + self._held)

    def wait_s(self, units: float) -> float:
        """Return the seconds until `units` are there; more than a minute's worth waits for a full bucket only."""
        return max(0.0, (min(units, self.per_minute) - self.level) * 60 / self.per_minute)

    async def take(self, units: float) -> float:
        """Take `units` and return 0, or take nothing and return the seconds to wait. Raise LedgerAway."""
        if self._held < units:
            recent = self._clock() - self._refused_at_s < REFUSED_S  # who is refused all the time asks no database
            if recent and (wait_s := self.wait_s(units)):
                return wait_s
            async with self._lock:
                if (need := units - self._held) > 0:
                    self._held += await asyncio.to_thread(self._draw, need, max(need, self._worth))
                if self._held < units:
                    self._refused_at_s = self._clock()
                    return max(1e-9, self.wait_s(units))
                self._held -= units
                return 0.0
        self._held -= units
        return 0.0

    def settle(self, units: float) -> None:
        """Take `units` whether or not they are there, or put them back if negative; nobody waits for the database."""
        self._held -= units
        if not 0 <= self._held <= self._worth:
            kept = max(0.0, min(self._worth, self._held))
            more, self._held = self._held - kept, kept
            self._level += more
            asyncio.get_running_loop().run_in_executor(None, self._put_back, more)

    def _put_back(self, units: float) -> None:
        try:
            self._draw(-units, -units, least=-1e300)  # whatever is there
        except LedgerAway as error:
            _log.warning("limits of keys: %s", error.args[0])

    def _draw(self, need: float, want: float, least: float | None = None) -> float:
        """Take `want` units, or `need` if there are at least so many, and return how many were taken."""
        most = float(self.per_minute)
        given = {"name": self._name, "now": (now := self._clock()), "most": most, "want": want, "need": need}
        given["least"] = min(need, most) - 1e-9 if least is None else least
        with self._database.short_write() as connection:
            self._level, taken = connection.execute(_DRAW, given | {"first": want if want <= most else need}).one()
        self._at_s = now
        return float(taken)


_REFILLED = "limits.level + (CASE WHEN limits.at < :now THEN :now - limits.at ELSE 0 END) * :most / 60"
_FILLED = f"(CASE WHEN limits.per_minute <> :most OR {_REFILLED} > :most THEN :most ELSE {_REFILLED} END)"
_TAKEN = f"(CASE WHEN {_FILLED} >= :want THEN :want WHEN {_FILLED} >= :least THEN :need ELSE 0 END)"
_DRAW = text(f"""
    INSERT INTO limits (name, level, at, per_minute, taken) VALUES (:name, :most - :first, :now, :most, :first)
    ON CONFLICT (name) DO UPDATE SET
        level = {_FILLED} - {_TAKEN}, taken = {_TAKEN}, per_minute = :most,
        at = CASE WHEN limits.at > :now THEN limits.at ELSE :now END
    RETURNING level, taken
""")
"""The one statement that draws from a limit; one that changed starts full."""


class TokenReservation:
    """The tokens of one request: an estimate until its usage is known."""

    def __init__(self, estimate: int) -> None:
        self.estimate = self.used = estimate
        self._n_added = 0

    def add(self, completion: Completion) -> None:
        self._n_added += completion.prompt_tokens + completion.completion_tokens
        self.used = self._n_added


NO_LIMITS = KeyPolicy()


class Quota:
    """What is left of one key's limits."""

    def __init__(
        self,
        policy: KeyPolicy = NO_LIMITS,
        id: str = "",
        database: Database | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`database` has what is left of the limits a minute of `id` for all processes."""
        self.policy, self.n_in_flight = policy, 0
        self._requests = self._tokens = None
        if database is not None and policy.requests_per_minute:
            self._requests = Bucket(f"requests/{id}", policy.requests_per_minute, database, clock)
        if database is not None and policy.tokens_per_minute:
            self._tokens = Bucket(f"tokens/{id}", policy.tokens_per_minute, database, clock)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Count one request in flight. Raise ApiError 429, a refused request costs nothing, or LedgerAway."""
        if self._tokens is not None and (wait_s := self._tokens.wait_s(0)):
            # In debt: refused before the body is read.
            raise _slow_down(f"This key may use {self._tokens.per_minute} tokens a minute.", wait_s, "tokens")
        if self.policy.max_in_flight is not None and self.n_in_flight >= self.policy.max_in_flight:
            rule = f"This key may have {self.policy.max_in_flight} requests under way at once."
            raise _slow_down(rule, 1, "requests")  # nobody knows when one ends
        self.n_in_flight += 1
        try:
            if self._requests is not None and (wait_s := await self._requests.take(1)):
                rule = f"This key may send {self._requests.per_minute} requests a minute."
                raise _slow_down(rule, wait_s, "requests")
            yield
        finally:
            self.n_in_flight -= 1

    @asynccontextmanager
    async def tokens(self, estimate: int) -> AsyncIterator[TokenReservation]:
        """Reserve `estimate` tokens, settled at the end. Raise ApiError 429 if they are not there, or LedgerAway."""
        bucket, reservation = self._tokens, TokenReservation(estimate)
        if bucket is not None and (wait_s := await bucket.take(estimate)):
            raise _slow_down(f"This key may use {bucket.per_minute} tokens a minute.", wait_s, "tokens")
        try:
            yield reservation
        finally:
            if bucket is not None and reservation.used != estimate:
                bucket.settle(reservation.used - estimate)

    def headers(self) -> dict[str, str]:
        """Return limits and what is left under OpenAI's header names; empty for a key without limits a minute."""
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found |= {
                    f"x-ratelimit-limit-{what}": str(bucket.per_minute),
                    f"x-ratelimit-remaining-{what}": str(max(0, math.floor(bucket.level + 1e-9))),
                    f"x-ratelimit-reset-{what}": _duration(bucket.wait_s(bucket.per_minute)),
                }
        return found


def _slow_down(rule: str, wait_s: float, what: str) -> ApiError:
    wait = max(1, math.ceil(wait_s - 1e-6))
    message = f"{rule} Try again in {wait} s."
    return ApiError(429, message, kind=what, code="rate_limit_exceeded", retry_after_s=wait)


def _duration(seconds: float) -> str:
    """Format as OpenAI does: `17ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"


class Caller(NamedTuple):
    """The key behind the current request."""

    owner: str = ""
    """Owner of what the key makes, kept by a rotated key; empty where no key is asked for."""
    id: str = ""
    """Id of the key, which may be logged."""
    policy: KeyPolicy = KeyPolicy(role="admin")
    """What the key allows; where no key is asked for, everything."""
    quota: Quota = Quota()
    """What is left of its limits, if it has any."""
    name: str = ""
    """Name of the key."""

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

    def __init__(self, key_store: KeyStore | None) -> None:
        self._key_store = key_store
        self._quotas: dict[str, Quota] = {}

    async def refresh(self) -> None:
        """Read the keys, unless they were read a moment ago."""
        if self._key_store is not None:
            await self._key_store.refresh()

    @property
    def needed(self) -> bool:
        return self._key_store is not None and self._key_store.key_required

    def caller(self, presented: str) -> Caller:
        """Return whose key it is. Raise ApiError 401 for none or an unknown one, 503 if the keys cannot be read."""
        if not presented:
            raise _unauthorised("No API key was given; send it as Authorization: Bearer KEY.")
        assert self._key_store is not None
        try:
            known = self._key_store.find(key_id(presented))
        except KeyStoreUnreadable:
            what = "Keys cannot be checked at the moment; try again shortly."
            raise server_error(503, what, "keys_unreadable", RETRY_AFTER_S) from None
        fits = hmac.compare_digest(hash_key(presented), known.sha256 if known else _NO_HASH)
        if known is None or not fits:
            raise _unauthorised("The API key is not known to this server.")
        if (state := known.state()) != "active":
            raise _unauthorised(f"The API key {known.id} is {state}.")
        return Caller(known.owner, known.id, known.policy, self._quota(known, self._key_store), known.name)

    def _quota(self, key: ApiKey, key_store: KeyStore) -> Quota:
        id = f"{key.owner}/{key.name}"  # a rotated key goes on with what its predecessor left
        found = self._quotas.get(id)
        if found is None or (found.policy is not key.policy and found.policy != key.policy):
            # Only accepted keys come here, so the key store bounds their number.
            found = self._quotas[id] = Quota(key.policy, id, key_store.database)
        return found


class AuthMiddleware:
    """ASGI middleware in front of all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServeSettings,
        key_store: KeyStore | None,
        open_paths: Collection[str],
        user_paths: Collection[str],
        judge_paths: Collection[str],
    ) -> None:
        self._app = app
        self._keys = KeyCheck(key_store)
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
                headers.update(limits())
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
            check_local(headers.getlist)
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


def check_local(given: Callable[[str], Sequence[str]]) -> None:
    """Raise ApiError 403 unless a request's headers name this machine: no page from elsewhere may ask.

    `given` returns the values of a header. A browser sends no Origin with what an image or a link asks for.
    """
    if not is_loopback(_host_name(given("host"))):
        message = "Without API keys only requests to localhost are answered; the Host header names another host."
        raise ApiError(403, message, code="host_not_allowed")
    origins = given("origin")
    elsewhere = not origins and "cross-site" in given("sec-fetch-site")
    if elsewhere or not all(is_loopback(_name_in(origin.partition("://")[2])) for origin in origins):
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
