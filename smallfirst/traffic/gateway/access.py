"""Who may use the proxy, and whom an upstream has accepted of late.

Everybody on this machine may use it until there are keys, and then their owners. A key of the proxy comes in
`x-smallfirst-key`, or in the place of the upstream's key; it is never passed on.

Nobody gets a small answer who may not ask the large model. Where clients bring their own keys, the upstream alone knows
which are valid. Its 2xx to a request for a model is its word on the credential, and lasts for a while; a 401 or 403
ends it at once. What is kept is a hash, keyed with a secret of the installation, never a key, and only of what was
accepted: invented keys leave nothing. All processes of a ledger share it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.database import LedgerAway
from smallfirst.ledger.keys import KeyStore, key_id, key_ids
from smallfirst.ledger.shared_state import SharedState
from smallfirst.models.remote.config import is_loopback
from smallfirst.serving.auth import KeyCheck, check_local
from smallfirst.serving.errors import ApiError, ledger_away
from smallfirst.traffic.gateway.http import (
    GatewayRequest,
    GatewayResponse,
    UpstreamAnswer,
    json_response,
    read_response,
)
from smallfirst.traffic.wire import objects

KEY_HEADER = b"x-smallfirst-key"
OWN_PATHS = ("/v1/smallfirst/", "/v1/dashboard/")
"""Paths below them say what the proxy does; with keys they need the role `admin`."""
_PLACES = (KEY_HEADER, b"authorization", b"x-api-key", b"api-key")


class Access:
    """The check of each request."""

    def __init__(self, key_store: KeyStore | None = None, *, everybody: bool = False) -> None:
        """With `everybody`, requests without a key are served whatever host they name."""
        self._keys, self._everybody = KeyCheck(key_store), everybody
        self._key_store = key_store

    def one_tenant(self) -> bool:
        """Return True if there is one tenant at most: without keys everybody is one. Raise as `KeyStore.entries`."""
        keys = self._key_store.entries() if self._key_store is not None else ()
        return len({key.name for key in keys if key.state() == "active"}) < 2

    @asynccontextmanager
    async def admit(self, request: GatewayRequest) -> AsyncIterator[tuple[str, ...]]:
        """Hold the place of a request, name its tenant and take the proxy's key out of it. Raise ApiError.

        Yield the models that may be asked for; none: all of them.
        """
        await self._keys.refresh()
        if not self._keys.needed:
            if not self._everybody:
                check_local(lambda name: _all(request, name.encode()))
            yield ()
            return
        caller = self._keys.caller(_presented(request))
        if request.path.startswith(OWN_PATHS) and caller.policy.role != "admin":
            raise ApiError(403, "This path needs a key with the role admin.", code="admin_only")
        request.tenant = caller.name
        request.headers = [pair for pair in request.headers if not self._has_key(pair[1].decode("latin-1"))]
        try:
            async with caller.quota.request() if caller.quota else nullcontext():
                yield caller.policy.models
        except LedgerAway:
            raise ledger_away() from None

    def _has_key(self, value: str) -> bool:
        """Return True if a key of this proxy is in a header's value: none goes upstream, wherever it stands."""
        return self._key_store is not None and any(map(self._key_store.find, key_ids(value)))


def check_exposure(host: str, key_store: KeyStore, *, everybody: bool) -> None:
    """Raise ConfigError if other machines could use the proxy without a key, unless that is wanted."""
    if not (is_loopback(host) or everybody or key_store.key_required):
        raise ConfigError(
            f'host "{host}" can be reached from other machines, and no key is asked for',
            hint="smallfirst keys create NAME, or --everybody, or listen on 127.0.0.1",
        )


def _presented(request: GatewayRequest) -> str:
    """Return the key of the proxy that a request comes with; empty if it comes with none."""
    for place in _PLACES:
        for value in _all(request, place):
            key = _key_in(value)
            if place == KEY_HEADER or key_id(key):
                return key
    return ""


def _key_in(value: str) -> str:
    scheme, _, key = value.strip().rpartition(" ")
    return key if scheme.strip().lower() in ("", "bearer") else ""


def _all(request: GatewayRequest, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in request.headers if key == name]


# What may be asked

_MOST_ESCAPED = 4
"""Times that a path may be escaped."""
_CHARACTER = re.compile(r"%u([0-9a-f]{4})", re.IGNORECASE)
_BETWEEN = re.compile(r"[/\\?#]")


def check_path(path: str) -> None:
    """Raise ApiError if any server could read a step up in a path, however it is escaped: it is passed on as it is."""
    left: str | None = path
    for _ in range(_MOST_ESCAPED + 1):
        before, left = left, _unescaped(left) if left is not None else None
    steps = [] if left is None else [step.partition(";")[0].strip() for step in _BETWEEN.split(left)]
    if left is None or left != before or "#" in path or not left.isprintable() or {".", ".."} & set(steps):
        raise ApiError(400, "The path has . or .. in it, or what may be read so.", code="invalid_path")


def _unescaped(path: str) -> str | None:
    """Return a path with one layer of escapes less; None for what is no UTF-8, such as a dot of two bytes."""
    try:
        text = unquote_to_bytes(path.encode()).decode()
    except UnicodeDecodeError:
        return None
    return unicodedata.normalize("NFKC", _CHARACTER.sub(lambda found: chr(int(found[1], 16)), text))


_ROUTE = re.compile(
    r"/v1/(?:(?:deployments|engines)/([^/]+)/)?(chat/completions|completions|responses|responses/input_tokens|messages"
    r"|messages/count_tokens|embeddings|moderations|decisions|rerank|images/generations|audio/speech)"
)
_ONE_MODEL = re.compile(r"/v1/models/(.+)")
_JSON_KIND = re.compile(rb"(?:application/json(?: *; *charset=\"?utf-?8\"?)?)?", re.IGNORECASE)
_REDIRECTS = frozenset({b"x-original-url", b"x-rewrite-url", b"x-http-method-override", b"x-http-method"})
"""Headers by which some servers take a request for another one."""
_NAMING = ("model", "deployment", "fallback")
"""Parts of the names of members and parameters that name models."""
_DATA = frozenset({"messages", "input", "prompt", "system", "instructions", "metadata", "documents", "query"})
"""Members of a body that name none, whatever is in them."""


def read_head(request: GatewayRequest) -> tuple[str, str] | None:
    """Return the route of a POST of JSON and the model in its path, or an empty text; None for all else."""
    found = _ROUTE.fullmatch(request.path)
    coded = request.header(b"content-encoding") or not _JSON_KIND.fullmatch(request.header(b"content-type"))
    if found is None or request.method != "POST" or coded or not _plain(request):
        return None
    return found[2], unquote(found[1] or "")


def _plain(request: GatewayRequest) -> bool:
    return not any(name in _REDIRECTS for name, _ in request.headers)


def may_ask(request: GatewayRequest, models: Sequence[str]) -> bool:
    """Return True if a request names a model where its route has it, and one of `models` wherever it names any."""
    if request.method == "GET":
        told = _ONE_MODEL.fullmatch(request.path)
        return told is not None and _plain(request) and not request.body and unquote(told[1]) in models
    head, body = read_head(request), request.json()
    if head is None or body is None or not isinstance(body.get("model") or head[1] or None, str):
        return False
    query = parse_qsl(request.query.decode("latin-1").replace(";", "&"), keep_blank_values=True)
    named = [*_named(query), *_named((name, value) for name, value in body.items() if name not in _DATA)]
    return all(name in models for name in named) and head[1] in ("", *models)


def _named(members: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """Yield what members name as models, themselves and what is in them; a schema's field of that name is none."""
    waiting = list(members)
    while waiting:
        name, value = waiting.pop()
        naming = any(part in name.casefold() for part in _NAMING)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and not (naming and "fallback" in name.casefold()):
                waiting += one.items()
            elif naming and one is not None:
                yield str(one)
            elif isinstance(one, list):
                waiting.append(("", one))


def only_models(answer: UpstreamAnswer, models: Sequence[str]) -> GatewayResponse:
    """Return the upstream's list of models without the others."""
    if answer.status != 200:
        return GatewayResponse(answer.status, answer.headers, answer.body)
    listed = objects((read_response(answer.headers, answer.body) or {}).get("data"))
    return json_response({"object": "list", "data": [one for one in listed if one.get("id") in models]})


# Credentials of clients

_log = logging.getLogger("smallfirst.gateway")
VALID_FOR_S = 3600.0
"""Seconds after an upstream's 2xx in which small models may answer a credential; then a request passes."""
SYNC_S = 1.0
"""Seconds between two exchanges with the other processes."""
MOST = 10_000
"""Credentials that are remembered; the oldest are forgotten, and their next request passes."""
_MOST_USES = 32
_RENEWED = 1 / 12
"""Share of its time after which a credential is noted anew: one write in five minutes of an hour."""
_HEADERS = frozenset(
    {
        b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"ocp-apim-subscription-key", b"cookie",
        b"openai-organization", b"openai-project",
    }
)  # fmt: skip
"""What an upstream may judge a client by; the query belongs to it, too."""
_STATE, _SECRET, _ENDED = "accepted credentials", "secret of credentials", ""
Known = dict[str, dict[str, float]]
"""Of each credential when its uses (a path and a model) were last accepted, and under `_ENDED` when it was refused."""


class Credentials:
    """The accepted credentials, as this process knows them. Each tenant has its own: nobody ends another's."""

    def __init__(self, shared: SharedState, *, clock: Callable[[], float] = time.time) -> None:
        self._shared, self._clock = shared, clock
        self._secret = b""
        self._known: Known = {}
        self._news: Known = {}
        self._syncing: asyncio.Task[None] | None = None
        self._version, self._synced_at_s = 0, float("-inf")

    async def start(self) -> None:
        """Read what is known. Raise LedgerAway."""
        made = secrets.token_hex(32)
        self._secret = bytes.fromhex(
            await self._shared.update(_SECRET, lambda known, _: (known or made, known or made))
        )
        await self._sync()

    async def aclose(self) -> None:
        """Tell the other processes the last news."""
        if self._syncing is not None:
            self._syncing.cancel()
        with suppress(LedgerAway):
            await self._sync()

    def accepts(self, request: GatewayRequest, upstream: str, model: str) -> bool:
        """Return True if `upstream` has lately answered this credential with 2xx on this path for this model.

        The answer that the request gets renews it. `upstream` is an address.
        """
        if time.monotonic() - self._synced_at_s > SYNC_S:
            self._sync_soon()
        use = hashlib.blake2b(f"{request.path}\0{model}".encode("utf-8", "replace"), digest_size=8).hexdigest()
        request.credential = id, use = self._id(request, upstream), use
        return self._is_valid(self._known.get(id, {}), use, VALID_FOR_S)

    def answered(self, request: GatewayRequest, upstream: str, status: int) -> None:
        """Note the status of an upstream's answer: 401 and 403, and 2xx to a request that `accepts` has seen."""
        if status in (401, 403):
            id = request.credential[0] if request.credential else self._id(request, upstream)
            if id in self._known:
                self._note(id, _ENDED, self._clock())
        elif request.credential is not None and 200 <= status < 300:
            id, use = request.credential
            if not self._is_valid(self._known.get(id, {}), use, VALID_FOR_S * _RENEWED):
                self._note(id, use, request.at)  # a key that was refused meanwhile stays refused

    def _is_valid(self, uses: Mapping[str, float], use: str, for_s: float) -> bool:
        at = uses.get(use, 0.0)
        return at > uses.get(_ENDED, 0.0) and abs(self._clock() - at) < for_s

    def _id(self, request: GatewayRequest, upstream: str) -> str:
        given = [part for pair in request.headers if pair[0] in _HEADERS for part in pair]
        parts = (request.tenant.encode(), upstream.encode(), request.query, *given)
        given_as_one = b"".join(b"%d:%s" % (len(part), part) for part in parts)
        return hashlib.blake2b(given_as_one, key=self._secret, digest_size=16).hexdigest()

    def _note(self, id: str, use: str, at: float) -> None:
        for known in (self._known, self._news):
            _put(known, id, use, at)
        if len(self._known) > 2 * MOST:
            self._known, self._news = _newest(self._known), _newest(self._news)
        self._sync_soon()

    def _sync_soon(self) -> None:
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.get_running_loop().create_task(self._sync_in_a_while())

    async def _sync_in_a_while(self) -> None:
        while True:
            await asyncio.sleep(self._synced_at_s + SYNC_S - time.monotonic())
            try:
                await self._sync()
            except LedgerAway as error:
                _log.warning("what upstreams accept is not shared with other processes: %s", error)
            if not self._news:
                return

    async def _sync(self) -> None:
        """Exchange news with the other processes. Raise LedgerAway."""
        self._synced_at_s = time.monotonic()
        version = await asyncio.to_thread(self._shared.version, _STATE)
        if not self._news and version == self._version:
            return
        news, self._news, oldest = self._news, {}, self._clock() - VALID_FOR_S

        def merged(before: Known | None, _: float) -> tuple[Known, Known]:
            known = {} if before is None else before
            after = {id: dict(uses) for id, uses in known.items() if max(uses.values()) > oldest}
            _add(after, news)
            after = _newest(after)
            return (known if after == known else after), after

        try:
            known = await self._shared.update(_STATE, merged)
        except LedgerAway:
            _add(self._news, news)
            raise
        self._version = version
        _add(known, self._news)
        self._known = known


def _add(known: Known, news: Known) -> None:
    for id, uses in news.items():
        for use, at in uses.items():
            _put(known, id, use, at)


def _put(known: Known, id: str, use: str, at: float) -> None:
    """Note a time unless a later one is known; of too many uses the oldest goes."""
    uses = known.setdefault(id, {})
    uses[use] = max(at, uses.get(use, 0.0))
    if len(uses) > _MOST_USES:
        del uses[min(uses, key=lambda each: uses[each])]


def _newest(known: Known) -> Known:
    """Return the MOST that were noted last."""
    if len(known) <= MOST:
        return known
    return dict(sorted(known.items(), key=lambda one: max(one[1].values()))[-MOST:])
