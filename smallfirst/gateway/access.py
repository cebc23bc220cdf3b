"""Who may use the proxy: everybody on this machine until there are keys, and then their owners.

A key of the proxy comes in `x-smallfirst-key`, or in the place of the upstream's key; it is never passed on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

from smallfirst.errors import ConfigError
from smallfirst.gateway.http import GatewayRequest
from smallfirst.models.remote.config import is_loopback
from smallfirst.serving.auth.keys import KeyStore, key_id
from smallfirst.serving.auth.middleware import KeyCheck, check_local
from smallfirst.serving.error_responses import ledger_away
from smallfirst.serving.ledger.database import LedgerAway
from smallfirst.serving.ledger.shared_state import SharedState
from smallfirst.serving.openai.errors import ApiError

KEY_HEADER = b"x-smallfirst-key"
OWN_PATHS = ("/v1/smallfirst/", "/v1/dashboard/")
"""Paths below them say what the proxy does; with keys they need the role `admin`."""
_PLACES = (KEY_HEADER, b"authorization", b"x-api-key", b"api-key")


class Access:
    """The check of each request."""

    def __init__(
        self, key_store: KeyStore | None = None, *, everybody: bool = False, state: SharedState | None = None
    ) -> None:
        """With `everybody`, requests without a key are served whatever host they name; `state` as in `KeyCheck`."""
        self._keys, self._everybody = KeyCheck((), key_store, state), everybody
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
