"""Settings of an OpenAI-compatible endpoint (its address, limits and retries) and of a vLLM that is joined."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field

from smallfirst.base.records import Record


def check_base_url(value: str) -> str:
    """Return the address without a slash at its end. Raise ValueError unless it is a full one without secrets."""
    try:
        url = urlsplit(value)
        _ = url.port  # parsed here, or it would only fail on the first request
    except ValueError as error:
        raise ValueError(f"is not an address: {error}") from None
    is_full = url.scheme in ("http", "https") and url.hostname and re.fullmatch(r"[^\x00-\x20\x7f]+", value)
    if not is_full or url.username or url.password or url.query or url.fragment:
        rule = "without user, password, ? or #: a key comes from the environment"
        raise ValueError(f"must be a full address such as https://api.example.com/v1, {rule}")
    return value.rstrip("/")


BaseUrl = Annotated[str, pydantic.AfterValidator(check_base_url)]
"""A full address without secrets, as `check_base_url` wants it."""


class EndpointConfig(Record):
    """Where an endpoint is, and how it is used."""

    base_url: BaseUrl
    """Address up to and including `/v1`."""
    model: str
    """Name of the model at the endpoint; its price is looked up by this name."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. The key itself is never in a file."""
    timeout_s: Annotated[float, Field(gt=0)] = 60
    """Longest wait for the first byte of an answer, for the rest of it, and between pieces."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Attempts after the first, where the endpoint certainly did nothing: no connection, 429, 425, or 503 with
    Retry-After."""
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests in flight at most; the others wait."""
    priced_by: Literal["tokens", "machine", "billed"] | None = None
    """Pay for tokens, for machine time, or what every answer states as its cost. Default: tokens, or machine time on
    loopback if no token price is known; a stated cost comes first, unless machine time is asked for."""
    machine: str = ""
    """The machine of one's own that it runs on, by its name under `prices.machines`; empty: `prices.machine`."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name for the length limit; hosted reasoning models want the long one."""
    extra_body: dict[str, Any] = {}
    """Added to every request body; null removes a setting (`temperature: null`)."""

    @property
    def is_loopback(self) -> bool:
        return is_loopback(urlsplit(self.base_url).hostname or "")


class VllmServer(Record):
    """A vLLM that runs already and serves every model over the same base."""

    url: BaseUrl
    """Its address, such as `http://gpu-1:8000`."""
    api_key_env: str = "VLLM_API_KEY"
    """Environment variable that holds its key. The key itself is never in a file."""
    slots: Annotated[int, Field(ge=1)] = 64
    """Requests in flight at most, of each model."""

    @pydantic.field_validator("url")
    @classmethod
    def _is_the_root(cls, value: str) -> str:
        return value.removesuffix("/v1")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`, a name or an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
