"""A general model from a GGUF file on this machine: llama.cpp (by xllamacpp) in a child process.

A child, because the engine catches signals and opens a port in whatever process it lives in, and a
crash there must not take the gateway along. The parent talks to it as to any other endpoint. The
price is the time to load the file at the first request, and its memory while the model is open.

Run as a program (`python -m smallfirst.models.gguf`) this module is the child.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field

from smallfirst.errors import BadAnswer, ConfigError, MissingExtra, Unavailable
from smallfirst.models.endpoint import EndpointConfig, EndpointModel
from smallfirst.models.model import Chunk, Completion, Request, stream_whole
from smallfirst.pricing import PriceBook
from smallfirst.records import Record

KEY_VARIABLE = "SMALLFIRST_GGUF_KEY"
READY = "listening "
PROMPT_CACHE_MIB = 256
STOP_S = 5.0


class GgufConfig(Record):
    """Which file is run, and with how much of the machine."""

    path: Path
    """The GGUF file."""
    slots: Annotated[int, Field(ge=1)] = 2
    """Requests answered side by side; each slot gets an equal part of the context."""
    context_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens of context over all slots. More lets prompts be longer and takes memory."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Processor threads; by default the engine takes one for each core."""
    timeout_s: Annotated[float, Field(gt=0)] = 300
    """Longest wait for an answer. Long prompts on few cores take minutes."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 300
    """Longest wait for the file to load."""


class GgufModel:
    """A local general model. It starts with the first request, and again if it has died.

    An answer costs its time by the machine price, divided by the requests under way when it began.
    """

    def __init__(
        self,
        config: GgufConfig,
        prices: PriceBook,
        *,
        answers: tuple[str, ...] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """A model that is not loaded yet. With `answers` it can write nothing but one of them, with `schema` only JSON.

        The engine drops a schema that it cannot apply, so whoever asks validates the answer again. Raises ConfigError
        if there is no such file, MissingExtra if xllamacpp is not installed.
        """
        if not config.path.is_file():
            raise ConfigError(f"{config.path}: no such GGUF file")
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("running a GGUF file", "llama")
        self.config = config
        self._prices = prices
        self._answers, self._schema = answers, schema
        self._child: Child | None = None
        self._endpoint: EndpointModel | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Name of the file without its ending."""
        return self.config.path.stem

    async def complete(self, request: Request) -> Completion:
        """The whole answer. Raises ModelError."""
        endpoint = await asyncio.to_thread(self._running)
        completion = await endpoint.complete(request)
        # The engine drops a grammar that it cannot apply and goes on without it: check the text.
        if self._answers is not None and completion.text not in self._answers:
            cut = completion.finish_reason == "length"
            raise BadAnswer(
                f"{self.name} wrote none of the {len(self._answers)} answers: {completion.text!r}",
                hint="raise max_tokens, the answer was cut off" if cut else None,
            )
        return completion

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer piece by piece; one of a fixed set comes in one piece. Raises ModelError."""
        if self._answers is not None:
            async for chunk in stream_whole(self, request):
                yield chunk
            return
        endpoint = await asyncio.to_thread(self._running)
        async for chunk in endpoint.stream(request):
            yield chunk

    async def aclose(self) -> None:
        """End the child process; a later request would start a new one."""
        endpoint, child = self._endpoint, self._child
        self._endpoint = self._child = None
        if endpoint is not None:
            await endpoint.aclose()
        if child is not None:
            await asyncio.to_thread(child.stop)

    def _running(self) -> EndpointModel:
        """The endpoint of a child that is alive, started now if need be. Blocks while it loads."""
        with self._lock:
            if self._endpoint is None or self._child is None or not self._child.is_alive:
                if self._child is not None:
                    self._child.stop()
                self._child = Child(self.config)
                self._endpoint = self._endpoint_of(self._child)
            return self._endpoint

    def _endpoint_of(self, child: Child) -> EndpointModel:
        # Models that can think aloud are told not to: it costs minutes on a processor.
        extra: dict[str, object] = {"chat_template_kwargs": {"enable_thinking": False}}
        if self._answers is not None:
            extra["grammar"] = grammar_of(self._answers)
        if self._schema is not None:
            extra["response_format"] = {"type": "json_schema", "json_schema": {"schema": dict(self._schema)}}
        config = EndpointConfig(
            base_url=f"{child.address}/v1",
            model=self.name,
            timeout_s=self.config.timeout_s,
            max_retries=1,
            max_concurrency=self.config.slots,
            priced_by="machine",
            extra_body=extra,
        )
        return EndpointModel(config, self._prices, api_key=child.key)


def grammar_of(answers: tuple[str, ...]) -> str:
    """A GBNF grammar that admits exactly these texts."""
    return "root ::= " + " | ".join(json.dumps(answer) for answer in answers)


class Child:
    """The process with the engine. It ends when its standard input does, so it dies with us.

    (The kernel's own parent-death signal would not do: it comes when the *thread* that started the
    child ends.)
    """

    def __init__(self, config: GgufConfig) -> None:
        self.key = secrets.token_urlsafe(32)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the child)
        command = [sys.executable, "-m", "smallfirst.models.gguf"]
        command += ["--model", str(config.path.absolute()), "--slots", str(config.slots)]
        command += ["--context", str(config.context_tokens), "--threads", str(config.threads or -1)]
        package_root = str(Path(__file__).parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, KEY_VARIABLE: self.key, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Ctrl-C is for us: we may still want answers while we finish our own requests.
            start_new_session=True,
        )
        self.address = self._address(config)

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask the process to end, and make it after STOP_S seconds."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _address(self, config: GgufConfig) -> str:
        """Where the child listens, once it has loaded the file. Raises Unavailable."""
        assert self._process.stdout is not None
        limit = threading.Timer(config.start_timeout_s, self._process.kill)
        limit.start()
        try:
            for line in self._process.stdout:
                if line.startswith(READY.encode()):
                    return line.decode().removeprefix(READY).strip()
        finally:
            limit.cancel()
        self._process.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        self.stop()
        raise Unavailable(
            f"large model down: {config.path} did not load: {' / '.join(last) or 'no reason'}",
            hint="check that the file is a whole GGUF file and fits into memory",
        )


def main(arguments: list[str] | None = None) -> None:
    """Serve one GGUF file on loopback until standard input ends. This is the child's program."""
    import argparse

    import xllamacpp

    parser = argparse.ArgumentParser(prog="python -m smallfirst.models.gguf")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=-1)
    options = parser.parse_args(arguments)

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.api_keys = [os.environ.pop(KEY_VARIABLE)]
    params.n_parallel = options.slots
    params.n_ctx = options.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cache_prompt = True  # requests of one task begin alike
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.offline = True
    params.ui = params.endpoint_slots = False
    params.verbosity = 1  # errors; the log is shown if loading fails
    server = xllamacpp.Server(params)

    print(f"{READY}{server.listening_address}", flush=True)
    os.dup2(2, 1)  # nobody reads our output from here on
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
