"""Settings of the server: loopback without a key, or any address with one; a bound on every queue, body and list."""

from __future__ import annotations

from pydantic import Field

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import Record
from smallfirst.ledger.keys import home_key_store
from smallfirst.models.remote.config import is_loopback


class ServeSettings(Record):
    """Address, keys and limits of a server."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 takes a free one and prints it."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the Host header may have; empty = any name with a key, only this machine's names without."""
    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    """Largest request body; counted as it arrives, so a false Content-Length does not help."""
    max_in_flight: int = Field(default=64, ge=1)
    """Requests that models answer at once."""
    max_queue: int = Field(default=256, ge=0)
    """Further requests that may wait for a turn; beyond that the answer is 503 with Retry-After."""
    max_prompt_tokens_in_flight: int = Field(default=1_000_000, ge=1)
    """Estimated prompt tokens of all requests that are answered or wait; beyond that the answer is 503 as well."""
    request_timeout_s: float = Field(default=120.0, gt=0)
    """Longest time for one request, waiting included; then 504."""
    drain_s: int = Field(default=30, ge=0)
    """Seconds that running requests have to finish when the server is told to stop."""
    max_messages: int = Field(default=256, ge=1)
    store_bodies: bool = False
    """True keeps the text of questions and answers in the ledger; false keeps only a hash."""


def check_settings(settings: ServeSettings, *, key_required: bool | None = None) -> None:
    """Raise ConfigError unless the address is loopback or keys are asked for.

    Without `key_required` the ledger of the state folder says whether they are.
    """
    if is_loopback(settings.host):
        return
    if not (home_key_store().key_required if key_required is None else key_required):
        raise ConfigError(
            f'host "{settings.host}" can be reached from other machines, and no API key is set',
            hint="smallfirst keys create NAME, or listen on 127.0.0.1",
        )
