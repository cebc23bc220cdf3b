"""A general model from a GGUF file on this machine: llama.cpp (through xllamacpp) in a child process.

Its queue is unbounded, so it never gets more requests than slots. Its slots cache prompts, whoever sent them, so each
request names its slot and says whether it may reuse the cache; hence one adapter or none a process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smallfirst.errors import ConfigError, MissingExtra
from smallfirst.models.protocol import Request
from smallfirst.models.response_format import OutputFormat, json_format
from smallfirst.models.servers.child_process import child_environment
from smallfirst.models.servers.llama_cpp_main import KEY_VARIABLE
from smallfirst.models.servers.managed_server import (
    ManagedServerConfig,
    ManagedServerModel,
    ServerBackend,
    ServerProgram,
    acquire,
)
from smallfirst.models.servers.slots import Slot
from smallfirst.pricing.prices import PriceBook


class LlamaCppConfig(ManagedServerConfig):
    """The file to serve, and how much of the machine it may use."""

    path: Path
    """The GGUF file."""
    adapter: Path | None = None
    """A LoRA adapter as GGUF file, on for every request. Another adapter is another process."""
    slots: Annotated[int, Field(ge=1)] = 2
    """Requests answered side by side; each slot gets an equal part of the context."""
    context_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens of context over all slots. More allows longer prompts and takes memory."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Processor threads; by default one for each core."""


class LlamaCppModel(ManagedServerModel):
    """A model from a GGUF file."""

    def __init__(
        self,
        config: LlamaCppConfig,
        prices: PriceBook,
        *,
        name: str = "",
        answers: tuple[str, ...] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Load nothing yet; allow `answers` only, or JSON of `schema`. Raise ConfigError, or MissingExtra."""
        for path in filter(None, (config.path, config.adapter)):
            if not path.is_file():
                raise ConfigError(f"{path}: no such GGUF file")
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("running a GGUF file", "llama")
        output_format: OutputFormat | None = None
        if answers is not None:
            output_format = OutputFormat(choice_grammar(answers), answers.__contains__, answers)
        elif schema is not None:
            output_format = json_format(schema)
        server = partial(acquire, llama_cpp_backend(config), config)
        super().__init__(server, prices, model=config.path.stem, name=name, output_format=output_format)


def llama_cpp_backend(config: LlamaCppConfig) -> ServerBackend:
    """Return the program that serves a GGUF file, and how to speak to it."""
    return ServerBackend(
        name=config.path.stem,
        extra_body=_extra_body,
        n_slots=config.slots,
        program=ServerProgram(
            command=lambda socket: _command(config, socket),
            environment=_environment,
            health_path="/slots",  # answered by the thread that computes; /health is not
            start_failure=(
                f"{config.path} did not load",
                "check that it is a complete GGUF file and fits into memory",
            ),
        ),
    )


def choice_grammar(answers: tuple[str, ...]) -> str:
    """Return a GBNF grammar for exactly these texts."""
    return "root ::= " + " | ".join(json.dumps(answer) for answer in answers)


def _extra_body(request: Request, output_format: OutputFormat, slot: Slot, fresh: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"id_slot": slot.number, "cache_prompt": slot.may_reuse_cache and not fresh}
    body |= {"chat_template_kwargs": {"enable_thinking": False}}  # reasoning takes minutes on a processor
    return body if output_format.grammar is None else body | {"grammar": output_format.grammar}


def _environment(key: str) -> dict[str, str]:
    package_root = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return child_environment(**{KEY_VARIABLE: key, "PYTHONPATH": paths})


def _command(config: LlamaCppConfig, socket: Path) -> Sequence[str]:
    options = {
        "socket": str(socket),
        "model": str(config.path.absolute()),
        "adapter": str(config.adapter.absolute()) if config.adapter else "",
        **config.model_dump(include={"slots", "context_tokens", "threads"}),
    }
    return [sys.executable, "-m", "smallfirst.models.servers.llama_cpp_main", json.dumps(options)]
