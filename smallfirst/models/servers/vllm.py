"""vLLM started for the user: a server in an environment of its own, behind a Unix socket that only we may open.

Never imported: its pins clash with ours. Its key guards some of its routes only, the others can stop it or change its
weights, so nobody but us reaches it, and its route for loading adapters is off. One process holds a base model and any
number of LoRA adapters, asked for by name. The price: some GB of packages, a minute or more to start.

What it remembers of prompts is salted by tenant. Schemas are compiled before they are sent, and answers checked.
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
from pathlib import Path
from typing import Annotated, Any

import httpx
import pydantic
from pydantic import Field

from smallfirst.errors import ConfigError, MissingExtra, Unavailable
from smallfirst.models.manifest import ADAPTER_CONFIG
from smallfirst.models.protocol import Capability, Request
from smallfirst.models.response_format import OutputFormat, json_format
from smallfirst.models.servers import orphan_guard as leash
from smallfirst.models.servers.child_process import child_environment
from smallfirst.models.servers.managed_server import (
    ManagedServerConfig,
    ManagedServerModel,
    ServerBackend,
    ServerProcess,
    new_key,
)
from smallfirst.models.servers.slots import Slot
from smallfirst.models.servers.unix_socket import SocketFolder
from smallfirst.pricing import PriceBook

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM can be started with."""
NAME = r"^[A-Za-z0-9._-]{1,128}$"
_OURS = ("--host", "--port", "--uds", "--api-key", "--trust-remote-code", "--served-model-name", "--enable-lora")
_OURS_TOO = ("--lora-modules", "--allow", "--root-path", "--middleware", "--config", "--headless", "--chat-template")
"""Options that would open the server, run foreign code, or are set here."""
_OF_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    "VLLM_SERVER_DEV_MODE": "0",
}


class VllmConfig(ManagedServerConfig):
    """Which model vLLM serves, and where it is installed."""

    model: Path
    """Folder of the base model: config.json, safetensors, tokenizer."""
    program: Path | None = None
    """The `vllm` of its own environment (`…/bin/vllm`), by default the one on PATH; or that environment's `python`, for
    builds whose command does not work."""
    adapters: tuple[tuple[str, Path], ...] = ()
    """LoRA adapters over the base: name and folder (a mapping is taken too)."""
    context_tokens: Annotated[int, Field(ge=64)] | None = None
    """Longest prompt with its answer; by default the model's own."""
    places: Annotated[int, Field(ge=1)] = 64
    """Requests under way at once."""
    options: tuple[str, ...] = ()
    """Further options of `vllm serve`, such as `--dtype=bfloat16`."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900
    """Longest wait for the weights to load."""

    @pydantic.field_validator("adapters", mode="before")
    @classmethod
    def _as_pairs(cls, value: Any) -> Any:
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @pydantic.field_validator("adapters")
    @classmethod
    def _are_named(cls, value: tuple[tuple[str, Path], ...]) -> tuple[tuple[str, Path], ...]:
        if wrong := [name for name, _ in value if not re.match(NAME, name)]:
            raise ValueError(f"names must be letters, digits, dots, underscores and dashes: {', '.join(wrong)}")
        if len({name for name, _ in value}) < len(value):
            raise ValueError("two adapters have one name")
        return value

    @pydantic.field_validator("options")
    @classmethod
    def _are_harmless(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [option for option in value if option.startswith(_OURS + _OURS_TOO)]:
            raise ValueError(f"{', '.join(wrong)} cannot be given: the server is ours alone, and runs no foreign code")
        return value


class VllmModel:
    """One name that vLLM serves: the base model, or an adapter over it. Models of one config share the process."""

    capabilities: frozenset[Capability] = ManagedServerModel.capabilities
    """What it can do beyond answering."""

    def __init__(
        self,
        config: VllmConfig,
        prices: PriceBook,
        *,
        adapter: str | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """A model that does not run yet. With `schema` it writes JSON only.

        Raises ConfigError naming what is wrong with the folders, MissingExtra if there is no vLLM.
        """
        if problems := _problems(config, adapter):
            raise ConfigError("vLLM cannot serve this:\n  " + "\n  ".join(problems))
        self.config = config
        if (program := find_vllm(config.program)) is None:
            raise VllmNotInstalled(config.program)
        self._program, self._name = program, adapter or config.model.name
        own = json_format(schema) if schema is not None else None
        self.hosted = ManagedServerModel(self._name, prices, own, self._engine, config)
        self.complete, self.stream = self.hosted.complete, self.hosted.stream
        self.ready, self.aclose, self.open = self.hosted.ready, self.hosted.aclose, self.hosted.open

    @property
    def name(self) -> str:
        """The adapter's name, or the folder's."""
        return self._name

    def _engine(self) -> ServerBackend:
        config, program, salt = self.config, self._program, os.urandom(32)

        def extra(request: Request, form: OutputFormat, _: Slot, fresh: bool) -> dict[str, Any]:
            return {"cache_salt": _salted(salt, request, fresh)} | _response_format(form)

        return ServerBackend(
            config.model.name, lambda folder: _start(program, config, folder), _probe, extra, config.places
        )


class VllmNotInstalled(MissingExtra):
    """There is no vLLM to start."""

    def __init__(self, program: Path | None) -> None:
        looked = f"there is no program {program}" if program else "no `vllm` is on PATH"
        Exception.__init__(self, f"starting vLLM: {looked}")
        self.hint = (
            "install it in an environment of its own (its pins clash with ours): "
            "python -m venv vllm && vllm/bin/pip install vllm; then name it: vllm: {program: vllm/bin/vllm}"
        )


def find_vllm(program: Path | None = None) -> Path | None:
    """The `vllm` to start: the one named, else the one on PATH; None if there is none."""
    found = shutil.which(str(program.absolute()) if program else "vllm")
    return Path(found) if found else None


def serve_command(program: Path, config: VllmConfig, socket: Path) -> list[str]:
    """How vLLM is started. Its key is not among the arguments, which any user of the machine can read."""
    run = ["-m", "vllm.entrypoints.openai.api_server", "--model"] if program.name.startswith("python") else ["serve"]
    command = [str(program), *run, str(config.model.absolute()), "--uds", str(socket)]
    # What the folder recommends for sampling would change answers that were asked for as they are.
    command += ["--generation-config", "vllm"]
    command += ["--served-model-name", config.model.name, "--max-num-seqs", str(config.places)]
    command += ["--structured-outputs-config", json.dumps({"backend": "guidance"})]
    command += ["--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    if config.context_tokens:
        command += ["--max-model-len", str(config.context_tokens)]
    if config.adapters:
        rank = max(_rank(folder) for _, folder in config.adapters)
        command += ["--enable-lora", "--max-loras", str(len(config.adapters))]
        command += ["--max-lora-rank", str(next(limit for limit in LORA_RANKS if limit >= rank)), "--lora-modules"]
        command += [f"{name}={folder.absolute()}" for name, folder in config.adapters]
    return [*command, *config.options]


def _start(program: Path, config: VllmConfig, folder: SocketFolder) -> ServerProcess:
    """The server once it answers. Raises Unavailable."""
    key = new_key()
    told = child_environment(**_QUIET, VLLM_API_KEY=key)
    told |= {"PATH": os.pathsep.join([str(program.parent), told.get("PATH", os.defpath)])}
    told = {name: value for name, value in told.items() if name not in _OF_PYTHON}
    leashed = [sys.executable, "-I", str(Path(leash.__file__)), *serve_command(program, config, folder.socket)]
    child = ServerProcess(leashed, told, key=key, folder=folder)
    if not child.wait_until(lambda: _is_healthy(child), config.start_timeout_s):
        child.stop()
        raise Unavailable(
            f"vLLM did not start for {config.model.name}: {child.output_tail()}",
            hint=f"try it by hand: {program} serve {config.model}",
        )
    return child


def _is_healthy(child: ServerProcess) -> bool:
    try:
        _probe(child, 2)
    except httpx.HTTPError:
        return False
    return True


def _probe(child: ServerProcess, limit_s: float) -> None:
    """Nothing back if the server says that its engine lives. Raises httpx.HTTPError."""
    with child.client(limit_s) as client:
        client.get("/health").raise_for_status()


def _salted(salt: bytes, request: Request, fresh: bool) -> str:
    """What a tenant's remembered prompts are kept under; nobody can guess it."""
    extra = os.urandom(16) if fresh else b""
    return hmac.new(salt, request.tenant.encode() + extra, hashlib.sha256).hexdigest()


def _response_format(form: OutputFormat) -> dict[str, Any]:
    if form.schema is None:
        return {}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema}}}


def _problems(config: VllmConfig, adapter: str | None) -> list[str]:
    """Everything that is wrong with the folders."""
    found = []
    if adapter is not None and adapter not in dict(config.adapters):
        found.append(f'no adapter is called "{adapter}"')
    settings = _read(config.model / "config.json")
    if settings is None:
        found.append(f"{config.model} holds no config.json")
    elif "auto_map" in settings:
        found.append(f"{config.model} wants to run code of its own (auto_map in config.json)")
    if not any(config.model.glob("*.safetensors")):
        found.append(f"{config.model} holds no weights as safetensors")
    for name, folder in config.adapters:
        if name == config.model.name:
            found.append(f"adapter {name}: the base model's folder has the same name")
        if _read(folder / ADAPTER_CONFIG) is None or not (folder / "adapter_model.safetensors").is_file():
            found.append(f"adapter {name}: {folder} holds no adapter_config.json with adapter_model.safetensors")
        elif _rank(folder) > LORA_RANKS[-1]:
            found.append(f"adapter {name}: its rank is {_rank(folder)}, vLLM takes at most {LORA_RANKS[-1]}")
    return found


def _rank(folder: Path) -> int:
    return int((_read(folder / ADAPTER_CONFIG) or {}).get("r", LORA_RANKS[0]))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
