"""vLLM as a child process: a server from an environment of its own, on a Unix socket that only this user may open.

Its key guards only some of its routes, and others can stop it or change its weights, so no other user may reach it. Its
prompt cache is salted by tenant. Schemas are compiled before they are sent, and answers are checked.
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

import pydantic
from pydantic import Field

from smallfirst.errors import ConfigError, MissingExtra
from smallfirst.models.manifest import ADAPTER_CONFIG, MANIFEST, read_manifest, require_base
from smallfirst.models.protocol import Request
from smallfirst.models.response_format import OutputFormat, json_format
from smallfirst.models.servers import orphan_guard
from smallfirst.models.servers.child_process import child_environment
from smallfirst.models.servers.managed_server import ManagedServerConfig, ManagedServerModel, ServerBackend
from smallfirst.models.servers.slots import Slot
from smallfirst.models.servers.unix_socket import SocketFolder
from smallfirst.pricing.prices import PriceBook

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank`."""
ADAPTER_NAME = r"^[A-Za-z0-9._-]{1,128}$"
_NETWORK_OPTIONS = ("--host", "--port", "--uds", "--api-key", "--allow", "--root-path", "--middleware", "--headless")
_MODEL_OPTIONS = ("--served-model-name", "--enable-lora", "--lora-modules", "--chat-template", "--trust-remote-code")
_RESERVED_OPTIONS = (*_NETWORK_OPTIONS, *_MODEL_OPTIONS, "--config")
"""Options that would open the server or run foreign code, and those that are set here."""
_PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    "VLLM_SERVER_DEV_MODE": "0",
}


class VllmConfig(ManagedServerConfig):
    """The models that vLLM serves, and where it is installed."""

    model: Path
    """Folder of the base model: config.json, safetensors, tokenizer."""
    program: Path | None = None
    """The `vllm` of its environment (`…/bin/vllm`), by default the one on PATH; or that environment's `python`, for
    builds whose command does not work."""
    adapters: tuple[tuple[str, Path], ...] = ()
    """LoRA adapters over the base: pairs of name and folder, or a mapping."""
    context_tokens: Annotated[int, Field(ge=64)] | None = None
    """Longest prompt with its answer; by default the model's own."""
    slots: Annotated[int, Field(ge=1)] = 64
    """Requests in flight at most."""
    options: tuple[str, ...] = ()
    """Further options of `vllm serve`, such as `--dtype=bfloat16`."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900
    """Longest wait for the weights to load."""

    @pydantic.field_validator("adapters", mode="before")
    @classmethod
    def _to_pairs(cls, value: Any) -> Any:
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @pydantic.field_validator("adapters")
    @classmethod
    def _check_names(cls, value: tuple[tuple[str, Path], ...]) -> tuple[tuple[str, Path], ...]:
        if wrong := [name for name, _ in value if not re.match(ADAPTER_NAME, name)]:
            raise ValueError(f"names must be letters, digits, dots, underscores and dashes: {', '.join(wrong)}")
        if len({name for name, _ in value}) < len(value):
            raise ValueError("two adapters have the same name")
        return value

    @pydantic.field_validator("options")
    @classmethod
    def _check_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [option for option in value if option.startswith(_RESERVED_OPTIONS)]:
            raise ValueError(
                f"{', '.join(wrong)} cannot be given: they are set here, open the server or run foreign code"
            )
        return value


class VllmModel(ManagedServerModel):
    """One model of a vLLM server: the base model, or an adapter over it."""

    def __init__(
        self,
        config: VllmConfig,
        prices: PriceBook,
        *,
        name: str = "",
        adapter: str | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Start nothing yet; `schema` allows JSON only. Raise ConfigError for wrong folders, VllmNotInstalled."""
        if problems := _problems(config, adapter):
            raise ConfigError("vLLM cannot serve this:\n  " + "\n  ".join(problems))
        for _, folder in config.adapters:
            if (folder / MANIFEST).is_file():
                require_base(folder, read_manifest(folder), config.model)
        if (program := find_vllm(config.program)) is None:
            raise VllmNotInstalled(config.program)
        output_format = json_format(schema) if schema is not None else None
        backend, model = vllm_backend(program, config), adapter or config.model.name
        super().__init__(backend, config, prices, model=model, name=name, output_format=output_format)


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


def serve_command(program: Path, config: VllmConfig, socket: Path) -> list[str]:
    """Return the command that starts vLLM. Its key is not in it, because any user can read another's arguments."""
    run = ["-m", "vllm.entrypoints.openai.api_server", "--model"] if program.name.startswith("python") else ["serve"]
    command = [str(program), *run, str(config.model.absolute()), "--uds", str(socket)]
    # Otherwise the folder's own sampling defaults would change the answers.
    command += ["--generation-config", "vllm"]
    command += ["--served-model-name", config.model.name, "--max-num-seqs", str(config.slots)]
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


def vllm_backend(program: Path, config: VllmConfig) -> ServerBackend:
    """Return the program that serves the config's models, and how to speak to it."""
    salt = os.urandom(32)

    def command(folder: SocketFolder) -> list[str]:
        guard = [sys.executable, "-I", str(Path(orphan_guard.__file__))]
        return [*guard, *serve_command(program, config, folder.socket)]

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
    )


def _response_format(output_format: OutputFormat) -> dict[str, Any]:
    if output_format.schema is None:
        return {}
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": output_format.schema}}
    }


def _problems(config: VllmConfig, adapter: str | None) -> list[str]:
    found = []
    if adapter is not None and adapter not in dict(config.adapters):
        found.append(f'there is no adapter "{adapter}"')
    settings = _read(config.model / "config.json")
    if settings is None:
        found.append(f"{config.model} has no config.json")
    elif "auto_map" in settings:
        found.append(f"{config.model} would run code of its own (auto_map in config.json)")
    if not any(config.model.glob("*.safetensors")):
        found.append(f"{config.model} has no weights as safetensors")
    for name, folder in config.adapters:
        if name == config.model.name:
            found.append(f"adapter {name}: the base model's folder has the same name")
        if _read(folder / ADAPTER_CONFIG) is None or not (folder / "adapter_model.safetensors").is_file():
            found.append(f"adapter {name}: {folder} lacks adapter_config.json or adapter_model.safetensors")
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
