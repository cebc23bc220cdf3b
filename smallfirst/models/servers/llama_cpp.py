"""A general model from a GGUF file on this machine: llama.cpp (by xllamacpp) in a child process.

A child, because the engine catches signals and opens a port in whatever process it lives in, and a crash there must not
take the gateway along. The price is the time to load the file at the first request, and its memory while it is open.

What the engine lacks is added here. Its own queue is unbounded, so it never gets more requests than it has slots. Its
slots remember prompts, whoever sent them, so each request names its slot and says whether it may use what is there. One
process has one adapter or none, on for every request, since prompts are remembered by their tokens alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smallfirst.errors import ConfigError, MissingExtra, Unavailable
from smallfirst.models.protocol import Capability, Request
from smallfirst.models.response_format import OutputFormat, json_format
from smallfirst.models.servers.child_process import child_environment
from smallfirst.models.servers.llama_cpp_main import KEY_VARIABLE, READY_PREFIX
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


class LlamaCppConfig(ManagedServerConfig):
    """Which file is run, and with how much of the machine."""

    path: Path
    """The GGUF file."""
    adapter: Path | None = None
    """A LoRA adapter as GGUF file, on for every request. Another adapter is another process."""
    slots: Annotated[int, Field(ge=1)] = 2
    """Requests answered side by side; each slot gets an equal part of the context."""
    context_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens of context over all slots. More lets prompts be longer and takes memory."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Processor threads; by default the engine takes one for each core."""


class LlamaCppModel:
    """A local general model. It starts with the first request, and again if it has died.

    Models of one file share one process. An answer costs its time by the machine price, divided by the requests under
    way when it began. An answer of a fixed form is checked when it is whole, so it comes in one piece.
    """

    capabilities: frozenset[Capability] = ManagedServerModel.capabilities
    """What it can do beyond answering."""

    def __init__(
        self,
        config: LlamaCppConfig,
        prices: PriceBook,
        *,
        answers: tuple[str, ...] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """A model that is not loaded yet. With `answers` it can write nothing but one of them, with `schema` only JSON.

        Raises ConfigError if there is no such file or no answer can be written under the schema, MissingExtra if
        xllamacpp is not installed.
        """
        for path in filter(None, (config.path, config.adapter)):
            if not path.is_file():
                raise ConfigError(f"{path}: no such GGUF file")
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("running a GGUF file", "llama")
        self.config = config
        own: OutputFormat | None = None
        if answers is not None:
            own = OutputFormat(choice_grammar(answers), answers.__contains__, answers)
        elif schema is not None:
            own = json_format(schema)
        self.hosted = ManagedServerModel(self.name, prices, own, self._engine, config)
        self.complete, self.stream = self.hosted.complete, self.hosted.stream
        self.ready, self.aclose, self.open = self.hosted.ready, self.hosted.aclose, self.hosted.open

    @property
    def name(self) -> str:
        """Name of the file without its ending."""
        return self.config.path.stem

    def _engine(self) -> ServerBackend:
        config = self.config
        return ServerBackend(self.name, lambda folder: LlamaCppProcess(config, folder), _probe, _extra, config.slots)


class LlamaCppProcess(ServerProcess):
    """The process with the engine, its file loaded. With a folder it listens on a socket in it, else on loopback."""

    def __init__(self, config: LlamaCppConfig, folder: SocketFolder | None = None) -> None:
        """Blocks while the file loads. Raises Unavailable if it does not."""
        key, package_root = new_key(), str(Path(__file__).parents[3])
        paths = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        told = child_environment(**{KEY_VARIABLE: key, "PYTHONPATH": paths})
        super().__init__(_command(config, folder), told, key=key, folder=folder, announces=READY_PREFIX)
        if not self.wait_until(lambda: self.announced is not None, config.start_timeout_s):
            self.stop()
            raise Unavailable(
                f"large model down: {config.path} did not load: {self.output_tail()}",
                hint="check that the file is a whole GGUF file and fits into memory",
            )


def choice_grammar(answers: tuple[str, ...]) -> str:
    """A GBNF grammar that admits exactly these texts."""
    return "root ::= " + " | ".join(json.dumps(answer) for answer in answers)


def _probe(child: ServerProcess, limit_s: float) -> None:
    """Nothing back once the thread that computes has answered (/health would be answered by another one)."""
    with child.client(limit_s) as client:
        client.get("/slots").raise_for_status()


def _extra(request: Request, form: OutputFormat, place: Slot, fresh: bool) -> dict[str, Any]:
    """The request's slot, whether it may use what that remembers, and the grammar.

    Models that can think aloud are told not to: it costs minutes on a processor.
    """
    told: dict[str, Any] = {"id_slot": place.number, "cache_prompt": place.is_own and not fresh}
    told |= {"chat_template_kwargs": {"enable_thinking": False}}
    return told if form.grammar is None else told | {"grammar": form.grammar}


def _command(config: LlamaCppConfig, folder: SocketFolder | None) -> list[str]:
    command = [sys.executable, "-m", "smallfirst.models.servers.llama_cpp_main"]
    command += ["--model", str(config.path.absolute()), "--slots", str(config.slots)]
    command += ["--context", str(config.context_tokens), "--threads", str(config.threads or -1)]
    command += ["--adapter", str(config.adapter.absolute())] if config.adapter else []
    return [*command, "--socket", str(folder.socket)] if folder else command
