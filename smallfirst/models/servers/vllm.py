"""A vLLM that runs already, joined at its address.

One vLLM serves every model of a base, and adapters are loaded into it through its API. Its prompt cache is salted by
tenant.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError
from smallfirst.files import sha256
from smallfirst.models.manifest import ADAPTER_CONFIG, MANIFEST, read_manifest
from smallfirst.models.protocol import Request
from smallfirst.models.response_format import OutputFormat
from smallfirst.models.servers.joined_server import JoinedServer
from smallfirst.models.servers.managed_server import (
    ManagedServer,
    ManagedServerConfig,
    ServerBackend,
    acquire,
)
from smallfirst.models.servers.slots import Slot
from smallfirst.models.servers.vllm_config import VllmServer

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MOST_LABELS = 1024
"""Value to give to its `--max-logprobs`: labels whose probabilities one request may ask for."""


class VllmConfig(VllmServer, ManagedServerConfig):
    """The base that a vLLM serves. Models of equal settings share one vLLM."""

    model: Path
    """The base model; only its name matters."""


def adapter_name(folder: Path, name: str) -> str:
    """Return the name under which vLLM knows a folder's weights: `tickets-small-3-1f0c9a2b`, another for others."""
    fingerprint = read_manifest(folder).weights_fingerprint if (folder / MANIFEST).is_file() else ""
    weights = folder / ADAPTER_WEIGHTS
    digest = fingerprint or (sha256(weights) if weights.is_file() else "")
    return "-".join(filter(None, (re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100], digest[:8])))


def vllm_backend(config: VllmConfig) -> ServerBackend:
    """Return the server of a base, and how to speak to it."""
    salt = os.urandom(32)

    def extra_body(request: Request, _format: OutputFormat, _slot: Slot, fresh: bool) -> dict[str, Any]:
        tenant = request.tenant.encode() + (os.urandom(16) if fresh else b"")
        return {"cache_salt": hmac.new(salt, tenant, hashlib.sha256).hexdigest()}

    return ServerBackend(config.model.name, extra_body, config.slots, adapters={})


def shared_server(config: VllmConfig, adapters: Mapping[str, Path]) -> ManagedServer:
    """Return the vLLM of equal settings, with these adapters beside those of other models; `release` gives it back."""
    server = acquire(vllm_backend(config), config, partial(joined_server, config, config.model.name))
    server.backend.adapters.update(adapters)
    return server


def joined_server(config: VllmServer, name: str) -> JoinedServer:
    """Return the vLLM at an address, not asked yet; errors mention `name`."""
    key = os.environ.get(config.api_key_env, "").strip()
    return JoinedServer(config.url, key, name=name, max_waiting=config.max_waiting)


def context_of(base: Path) -> int | None:
    """Return the longest prompt with its answer that a base was made for, in tokens; None if its folder is not here."""
    found = (_read(base / "config.json") or {}).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def check_adapter(config: VllmConfig, folder: Path) -> None:
    """Raise ConfigError if an adapter cannot be loaded into the vLLM."""
    settings = _read(folder / ADAPTER_CONFIG)
    if settings is None or not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(f"{folder} lacks {ADAPTER_CONFIG} or {ADAPTER_WEIGHTS}")
    if (rank := int(settings.get("r", 8))) > config.lora_rank:
        raise ConfigError(f"{folder}: this adapter's rank is {rank}, and lora_rank allows {config.lora_rank}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
