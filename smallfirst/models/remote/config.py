"""Where an OpenAI-compatible endpoint is and how it may be used: plain settings, no connection."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

import pydantic
from pydantic import Field

from smallfirst.models.remote.circuit_breaker import CircuitBreakerConfig
from smallfirst.records import Record


class EndpointConfig(Record):
    """Where an endpoint is and how it may be used."""

    base_url: str
    """Address up to and including `/v1`."""
    model: str
    """Name of the model at the endpoint; its price is looked up by this name."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. The key itself is never in a file."""
    timeout_s: Annotated[float, Field(gt=0)] = 60
    """Longest wait for the first byte of an answer, for the rest of it, and between pieces."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5
    """Longest wait for a connection."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Tries after the first, on 429, 5xx and broken connections."""
    retry_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Retries of all requests together are at most this share of them, plus ten. Not counted is a 429 that names its
    own wait."""
    breaker: CircuitBreakerConfig = CircuitBreakerConfig()
    """When the endpoint is left alone after failures, and for how long."""
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    """Most requests under way at once; the others wait here."""
    priced_by: Literal["tokens", "machine"] | None = None
    """What is paid for. Default: tokens, or machine time on loopback if no token price is known."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How this endpoint calls the length limit; hosted reasoning models want the long name."""
    extra_body: dict[str, Any] = {}
    """Added to every request body; null takes a setting out (`temperature: null`)."""

    @pydantic.field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        url = _split(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("must be a full address such as https://api.example.com/v1")
        if url.username or url.password:
            raise ValueError("must hold no user or password; the key comes from the environment")
        return value.rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """True if the address is this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def _split(value: str) -> SplitResult:
    """The parts of an address. Raises ValueError saying what is wrong with it."""
    if any(character <= " " or character == "\x7f" for character in value):
        raise ValueError("is no address: it holds a blank or a control character")
    try:
        url = urlsplit(value)
        _ = url.port  # read here, or it would only fail when somebody connects
    except ValueError as error:
        raise ValueError(f"is no address: {error}") from None
    return url
