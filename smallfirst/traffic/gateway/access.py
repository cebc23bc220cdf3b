"""Who may use the proxy, and whom an upstream has accepted of late.

Everybody on this machine may use it until there are keys, and then their owners. A key of the proxy comes in
`x-smallfirst-key`, or in the place of the upstream's key; it is never passed on.

Nobody gets a small answer who may not ask the large model. Where clients bring their own keys, the upstream alone knows
which are valid. Its 2xx to a request for a model is its word on the credential, and lasts for a while; a 401 or 403
ends it at once. What is kept is a hash in memory, keyed with a secret of the process, never a key, and only of what was
accepted: invented keys leave nothing. After a restart the first request of each credential passes.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.database import LedgerAway
from smallfirst.ledger.keys import KeyStore, key_id
from smallfirst.models.remote.config import is_loopback
from smallfirst.serving.auth import KeyCheck, check_local
from smallfirst.serving.errors import ApiError, ledger_away
from smallfirst.traffic.gateway.http import GatewayRequest

KEY_HEADER = b"x-smallfirst-key"
OWN_PATHS = ("/v1/smallfirst/", "/v1/dashboard/")
"""Paths below them say what the proxy does; with keys they need the role `admin`."""
_PLACES = (KEY_HEADER, b"authorization", b"x-api-key", b"api-key")


class Access:
    """The check of each request."""

    def __init__(self, key_store: KeyStore | None = None, *, everybody: bool = False) -> None:
        """With `everybody`, requests without a key are served whatever host they name."""
        self._keys, self._everybody = KeyCheck(key_store), everybody

    @asynccontextmanager
    async def admit(self, request: GatewayRequest) -> AsyncIterator[tuple[str, ...]]:
        """Hold the place of a request, name its tenant and take the proxy's key out of it. Raise ApiError.

        Yield the models that may be asked for; none: all of them.
        """
        await self._keys.refresh()
        if not self._keys.needed:
            if not self._everybody:
                check_local(_all(request, b"host"), _all(request, b"origin"))
            yield ()
            return
        place, presented = _presented(request)
        caller = self._keys.caller(presented)
        if request.path.startswith(OWN_PATHS) and caller.policy.role != "admin":
            raise ApiError(403, "This path needs a key with the role admin.", code="admin_only")
        request.tenant = caller.name
        request.headers = [(name, value) for name, value in request.headers if name != place]
        try:
            async with caller.quota.request() if caller.quota else nullcontext():
                yield caller.policy.models
        except LedgerAway:
            raise ledger_away() from None


def check_exposure(host: str, key_store: KeyStore, *, everybody: bool) -> None:
    """Raise ConfigError if other machines could use the proxy without a key, unless that is wanted."""
    if not (is_loopback(host) or everybody or key_store.key_required):
        raise ConfigError(
            f'host "{host}" can be reached from other machines, and no key is asked for',
            hint="smallfirst keys create NAME, or --everybody, or listen on 127.0.0.1",
        )


def may_ask(request: GatewayRequest, models: tuple[str, ...]) -> bool:
    """Return True if a request with a body names one of `models`; one without a body names none."""
    return not request.body or (request.json() or {}).get("model") in models


def _presented(request: GatewayRequest) -> tuple[bytes, str]:
    """Return the header that holds a key of the proxy, and the key; empty if none does."""
    for place in _PLACES:
        for value in _all(request, place):
            key = value.removeprefix("Bearer ").strip()
            if place == KEY_HEADER or key_id(key):
                return place, key
    return b"", ""


def _all(request: GatewayRequest, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in request.headers if key == name]


# Credentials of clients

VALID_FOR_S = 3600.0
"""Seconds after an upstream's 2xx in which small models may answer a credential; then a request passes."""
MOST, MOST_USES = 10_000, 32
"""Credentials that are remembered, and uses of each; the oldest are forgotten, and their next request passes."""
_HEADERS = frozenset(
    {
        b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"ocp-apim-subscription-key", b"cookie",
        b"openai-organization", b"openai-project",
    }
)  # fmt: skip
"""What an upstream may judge a client by; the query belongs to it, too."""


class Credentials:
    """The accepted credentials, in memory. Each tenant has its own: nobody ends another's."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._secret = clock, secrets.token_bytes(32)
        self._accepted: OrderedDict[str, dict[str, float]] = OrderedDict()
        """Of each credential, the last one last, when its uses (a path and a model) were accepted."""
        self._refused: dict[str, float] = {}
        """When one of them was refused, whatever its use."""

    def accepts(self, request: GatewayRequest, upstream: str, model: str) -> bool:
        """Return True if `upstream` has lately answered this credential with 2xx on this path for this model.

        The answer that the request gets renews it. `upstream` is an address.
        """
        use = hashlib.blake2b(f"{request.path}\0{model}".encode("utf-8", "replace"), digest_size=8).hexdigest()
        request.credential = id, use = self._id(request, upstream), use
        at = self._accepted.get(id, {}).get(use, 0.0)
        return at > self._refused.get(id, 0.0) and abs(self._clock() - at) < VALID_FOR_S

    def answered(self, request: GatewayRequest, upstream: str, status: int) -> None:
        """Note the status of an upstream's answer: 401 and 403, and 2xx to a request that `accepts` has seen."""
        if status in (401, 403):
            id = request.credential[0] if request.credential else self._id(request, upstream)
            if id in self._accepted:
                self._refused[id] = self._clock()
        elif request.credential is not None and 200 <= status < 300:
            id, use = request.credential
            uses = self._accepted.setdefault(id, {})
            uses[use] = max(request.at, uses.pop(use, 0.0))  # a key that was refused meanwhile stays refused
            if len(uses) > MOST_USES:
                del uses[next(iter(uses))]
            self._accepted.move_to_end(id)
            if len(self._accepted) > MOST:
                self._refused.pop(self._accepted.popitem(last=False)[0], None)

    def _id(self, request: GatewayRequest, upstream: str) -> str:
        given = [part for pair in request.headers if pair[0] in _HEADERS for part in pair]
        parts = (request.tenant.encode(), upstream.encode(), request.query, *given)
        given_as_one = b"".join(b"%d:%s" % (len(part), part) for part in parts)
        return hashlib.blake2b(given_as_one, key=self._secret, digest_size=16).hexdigest()
