"""The settings of the proxy, gateway.yaml: upstreams, models, what is kept of the traffic, teachers and prices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.records import Record, parse_record, read_yaml
from smallfirst.models.pricing import PriceBook
from smallfirst.models.remote.config import BaseUrl
from smallfirst.traffic.capture_store import KEY_ENV
from smallfirst.traffic.task_source import Teacher

FILE_NAME = "gateway.yaml"
DEFAULT_UPSTREAM = "default"
"""Name of the upstream that `--upstream` gives."""


class UpstreamSettings(Record):
    """An API that requests are passed on to."""

    base_url: BaseUrl
    """Address up to and including `/v1`."""
    api_key_env: str | None = None
    """Environment variable that holds its key; left out: each client's own key is passed on, and never stored."""
    api_key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization"
    """Header of that key: `authorization` as a bearer token; `x-api-key` for Anthropic, `api-key` for Azure."""
    timeout_s: Annotated[float, Field(gt=0)] = 600
    """Longest wait for the first byte of an answer and between two pieces of it; then 504."""

    def key(self) -> str | None:
        """Return its key from the environment, or None where the client's own is passed on. Raise ConfigError."""
        if self.api_key_env is None:
            return None
        found = os.environ.get(self.api_key_env, "").strip()
        if not found:
            raise ConfigError(
                f"no key for {self.base_url}: the environment variable {self.api_key_env} is not set",
                hint=f"export {self.api_key_env}=…, or leave api_key_env out to pass the clients' own keys on",
            )
        return found


class ModelRoute(Record):
    """Where requests for a model go."""

    upstream: str
    """Name of an upstream."""
    name: str | None = None
    """What the upstream calls the model; left out: as it is asked for."""


class CaptureSettings(Record):
    """What is kept of the traffic, redacted. Without it nothing is kept."""

    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests that is kept, drawn by chance."""
    max_rows: Annotated[int, Field(ge=1)] = 200_000
    """Most exchanges; the oldest go first."""
    keep_days: Annotated[int, Field(ge=1)] = 30
    """Days after which an exchange is deleted."""
    tenants: tuple[str, ...] = ("default",)
    """Tenants who have agreed: names of keys (`smallfirst keys create NAME`); `default` is everybody without a key."""
    key_env: str | None = None
    """Environment variable that holds the key with which the store is encrypted; left out: SMALLFIRST_CAPTURE_KEY, if
    that is set."""

    def key(self) -> str | None:
        """Return the store's key from the environment, or None without one. Raise ConfigError if it must be there."""
        found = os.environ.get(self.key_env or KEY_ENV) or None
        if self.key_env and not found:
            raise ConfigError(
                f"capture.key_env: the environment variable {self.key_env} is not set", hint=f"export {self.key_env}=…"
            )
        return found


class GatewaySettings(Record):
    """Everything that gateway.yaml can say."""

    upstreams: dict[str, UpstreamSettings] = Field(min_length=1)
    """By name. Requests for models that `models` does not name go to the first."""
    models: dict[str, ModelRoute] = {}
    """By the name that is asked for."""
    capture: CaptureSettings | None = None
    """Left out: nothing is kept."""
    teachers: dict[str, Teacher] = {}
    """Terms of models whose recorded answers small models might learn from, by model name."""
    prices: PriceBook = PriceBook()
    """As in task.yaml."""
    max_buffered_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024
    """Larger request bodies are passed on while they arrive; no small model answers them."""
    folder: Path = Path()
    """Folder of gateway.yaml; set when it is read."""

    @pydantic.model_validator(mode="after")
    def _upstreams_exist(self) -> GatewaySettings:
        for model, route in self.models.items():
            if route.upstream not in self.upstreams:
                found = did_you_mean(route.upstream, self.upstreams)
                raise ValueError(f"models.{model}: no upstream is called {route.upstream!r}{found}")
        return self

    def teacher_of(self, model: str, *asked_as: str) -> Teacher:
        """Return the record of a teacher with its terms: those of its own name, or of a name that it was asked by.

        `gpt-4o` is also the name of its dated versions (`gpt-4o-2024-08-06`), unless these have terms of their own.
        """
        names = [name for name in (model, *asked_as) if name in self.teachers]
        names += sorted((name for name in self.teachers if model.startswith(f"{name}-")), key=len, reverse=True)
        terms = self.teachers[names[0]] if names else Teacher()
        return terms.model_copy(update={"model": model})


def read_gateway_file(path: Path | None = None, *, upstream: str | None = None) -> GatewaySettings:
    """Return the settings in `path`, a file or its folder, with `upstream`'s address as the first upstream.

    Without a path, those of gateway.yaml in the current folder; that may be missing if there is an `upstream`. Raise
    ConfigError naming every wrong setting.
    """
    file = path or Path(FILE_NAME)
    if file.is_dir():
        file = file / FILE_NAME
    values: dict[str, Any] = {}
    if file.is_file():
        values = read_yaml(file)
    elif path is not None or upstream is None:
        raise ConfigError(f"{file}: no such file", hint="smallfirst proxy --upstream https://api.openai.com/v1")
    if upstream is not None:
        values["upstreams"] = {DEFAULT_UPSTREAM: {"base_url": upstream}, **(values.get("upstreams") or {})}
        values["upstreams"][DEFAULT_UPSTREAM] = {**values["upstreams"][DEFAULT_UPSTREAM], "base_url": upstream}
    read = parse_record(GatewaySettings, {**values, "folder": str(file.parent)}, where=str(file))
    return read.model_copy(update={"prices": read.prices.model_copy(update={"source": file.name})})


def settings_near(folder: Path) -> GatewaySettings | None:
    """Return the settings of the gateway.yaml in the folder or the nearest one above; None without one."""
    here = folder.absolute()
    file = next((place / FILE_NAME for place in (here, *here.parents) if (place / FILE_NAME).is_file()), None)
    return read_gateway_file(file) if file else None
