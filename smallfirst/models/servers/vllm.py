"""vLLM as a child process, on a Unix socket that only this user may open, or joined at its address.

Its key guards only some of its routes, and others can stop it or change its weights, so no other user may reach it. One
vLLM serves every model of a base, and adapters are loaded while it runs. Its prompt cache is salted by tenant. Schemas
are compiled before they are sent, and answers are checked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smallfirst.errors import ConfigError, MissingExtra
from smallfirst.files import sha256
from smallfirst.models.manifest import ADAPTER_CONFIG, MANIFEST, read_manifest, require_base
from smallfirst.models.protocol import Request
from smallfirst.models.response_format import OutputFormat, json_format
from smallfirst.models.servers import orphan_guard
from smallfirst.models.servers.child_process import child_environment
from smallfirst.models.servers.joined_server import JoinedServer
from smallfirst.models.servers.managed_server import (
    ManagedServer,
    ManagedServerConfig,
    ManagedServerModel,
    ServerBackend,
    acquire,
)
from smallfirst.models.servers.slots import Slot
from smallfirst.models.servers.vllm_config import VllmServer
from smallfirst.pricing.prices import PriceBook

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank`."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MOST_LABELS = 1024
"""Value of `--max-logprobs`: labels whose probabilities one request may ask for."""
_PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "0",
}


class VllmConfig(VllmServer, ManagedServerConfig):
    """The base that a vLLM serves. Models of equal settings share one vLLM."""

    model: Path
    """Folder of the base model: config.json, safetensors, tokenizer. Only its name matters for one at `url`."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900
    """Longest wait for the weights to load."""


class VllmModel(ManagedServerModel):
    """A general chat model on vLLM, with its own chat template: the base, or an adapter over it."""

    def __init__(
        self,
        config: VllmConfig,
        prices: PriceBook,
        *,
        name: str = "",
        adapter: Path | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Start nothing yet; `schema` allows JSON only. Raise ConfigError for wrong folders, VllmNotInstalled."""
        check_folders(config, adapter)
        name = name or (adapter or config.model).name
        model = adapter_name(adapter, name) if adapter else config.model.name
        server = partial(shared_server, config, {model: adapter} if adapter else {})
        output_format = json_format(schema) if schema is not None else None
        super().__init__(server, prices, model=model, name=name, output_format=output_format)


def check_folders(config: VllmConfig, adapter: Path | None = None) -> None:
    """Raise ConfigError if a folder cannot be served, VllmNotInstalled if vLLM should be started and is not there."""
    problems = [*([] if config.url else _base_problems(config.model)), *_adapter_problems(config, adapter)]
    if problems:
        raise ConfigError("vLLM cannot serve this:\n  " + "\n  ".join(problems))
    if config.url:
        return
    if adapter and (adapter / MANIFEST).is_file():
        require_base(adapter, read_manifest(adapter), config.model)
    if find_vllm(config.program) is None:
        raise VllmNotInstalled(config.program)


def adapter_name(folder: Path, name: str) -> str:
    """Return the name under which vLLM knows a folder's weights: `tickets-small-3-1f0c9a2b`, another for others."""
    fingerprint = read_manifest(folder).weights_fingerprint if (folder / MANIFEST).is_file() else ""
    weights = folder / ADAPTER_WEIGHTS
    digest = fingerprint or (sha256(weights) if weights.is_file() else "")
    return "-".join(filter(None, (re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100], digest[:8])))


class VllmNotInstalled(MissingExtra):
    """No `vllm` was found."""

    def __init__(self, program: Path | None) -> None:
        looked = f"there is no program {program}" if program else "no `vllm` is on PATH"
        Exception.__init__(self, f"starting vLLM: {looked}")
        self.hint = (
            "install it in an environment of its own, because its pins clash with those of smallfirst: "
            "python -m venv vllm && vllm/bin/pip install vllm; then name it: vllm: {program: vllm/bin/vllm}"
        )


def find_vllm(program: Path | None = None) -> Path | None:
    """Return the `vllm` to start: the one named, else the one on PATH; None if there is none."""
    found = shutil.which(str(program.absolute()) if program else "vllm")
    return Path(found) if found else None


def serve_command(program: Path, config: VllmConfig, socket: Path, adapters: Mapping[str, Path]) -> list[str]:
    """Return the command that starts vLLM. Its key is not in it, because any user can read another's arguments."""
    run = ["-m", "vllm.entrypoints.openai.api_server", "--model"] if program.name.startswith("python") else ["serve"]
    command = [str(program), *run, str(config.model.absolute()), "--uds", str(socket)]
    # Otherwise the folder's own sampling defaults would change the answers.
    command += ["--generation-config", "vllm"]
    command += ["--served-model-name", config.model.name, "--max-num-seqs", str(config.slots)]
    command += ["--structured-outputs-config", json.dumps({"backend": "guidance"})]
    command += ["--max-logprobs", str(MOST_LABELS), "--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    if config.context_tokens:
        command += ["--max-model-len", str(config.context_tokens)]
    if config.head_dtype == "float32":
        command += ["--hf-overrides", json.dumps({"head_dtype": "float32"})]
    if config.lora_rank:
        command += ["--enable-lora", "--max-loras", str(config.loras_at_once)]
        command += ["--max-lora-rank", str(next(limit for limit in LORA_RANKS if limit >= config.lora_rank))]
    if adapters:
        command += ["--lora-modules", *(f"{name}={folder.absolute()}" for name, folder in adapters.items())]
    return [*command, *config.options]


def vllm_backend(config: VllmConfig) -> ServerBackend:
    """Return the server of a base, started or joined, and how to speak to it."""
    salt, program = os.urandom(32), find_vllm(config.program) or Path("vllm")
    adapters: dict[str, Path] = {}

    def command(socket: Path) -> list[str]:
        guard = [sys.executable, "-I", str(Path(orphan_guard.__file__))]
        return [*guard, *serve_command(program, config, socket, adapters)]

    def environment(key: str) -> dict[str, str]:
        found = child_environment(**_QUIET, VLLM_API_KEY=key)
        found |= {"PATH": os.pathsep.join([str(program.parent), found.get("PATH", os.defpath)])}
        return {name: value for name, value in found.items() if name not in _PYTHON_VARIABLES}

    def extra_body(request: Request, output_format: OutputFormat, _: Slot, fresh: bool) -> dict[str, Any]:
        tenant = request.tenant.encode() + (os.urandom(16) if fresh else b"")
        return {"cache_salt": hmac.new(salt, tenant, hashlib.sha256).hexdigest()} | _response_format(output_format)

    return ServerBackend(
        name=config.model.name,
        command=command,
        environment=environment,
        health_path="/health",
        extra_body=extra_body,
        n_slots=config.slots,
        start_failure=(
            f"vLLM did not start for {config.model.name}",
            f"try it by hand: {program} serve {config.model}",
        ),
        adapters=adapters,
    )


def shared_server(config: VllmConfig, adapters: Mapping[str, Path]) -> ManagedServer:
    """Return the vLLM of equal settings, with these adapters beside those of other models; `release` gives it back."""
    join = partial(joined_server, config, config.url, config.model.name) if config.url else None
    server = acquire(vllm_backend(config), config, join)
    server.backend.adapters.update(adapters)
    return server


def joined_server(config: VllmServer, url: str, name: str) -> JoinedServer:
    """Return the vLLM at an address, not asked yet; errors mention `name`."""
    key = os.environ.get(config.api_key_env, "").strip()
    return JoinedServer(url, key, name=name, max_waiting=config.max_waiting)


def _response_format(output_format: OutputFormat) -> dict[str, Any]:
    if output_format.schema is None:
        return {}
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": output_format.schema}}
    }


def context_of(base: Path) -> int | None:
    """Return the longest prompt with its answer that a base was made for, in tokens; None if its folder is not here."""
    found = (_read(base / "config.json") or {}).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _base_problems(folder: Path) -> list[str]:
    settings, found = _read(folder / "config.json"), []
    if settings is None:
        found.append(f"{folder} has no config.json")
    elif "auto_map" in settings:
        found.append(f"{folder} would run code of its own (auto_map in config.json)")
    if not any(folder.glob("*.safetensors")):
        found.append(f"{folder} has no weights as safetensors")
    return found


def _adapter_problems(config: VllmConfig, folder: Path | None) -> list[str]:
    if folder is None:
        return []
    settings = _read(folder / ADAPTER_CONFIG)
    if settings is None or not (folder / ADAPTER_WEIGHTS).is_file():
        return [f"{folder} lacks {ADAPTER_CONFIG} or {ADAPTER_WEIGHTS}"]
    if (rank := int(settings.get("r", 8))) > config.lora_rank:
        return [f"{folder}: this adapter's rank is {rank}, and lora_rank allows {config.lora_rank}"]
    return []


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
