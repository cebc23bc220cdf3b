"""The program inside the child process: llama.cpp serving one GGUF file.

The engine installs signal handlers and opens a port in whatever process it lives in, so it lives here and not in the
gateway. It listens on a Unix socket that only its user may open, or on loopback, and wants a key in either case.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

KEY_VARIABLE = "SMALLFIRST_ENGINE_SECRET_KEY"
READY_PREFIX = "listening "
BATCH_TOKENS = 512
"""Prompt tokens read in one go: until they are read, the engine hears neither a probe nor that a client has left."""
SPARE_CONNECTIONS = 4
"""Connections beside one for each slot: probes, and clients whose leaving is not noticed yet."""


def main(arguments: list[str] | None = None) -> None:
    """Serve one file until standard input ends."""
    import xllamacpp

    os.umask(0o077)
    _no_core_dumps()
    options = parser().parse_args(arguments)
    server = xllamacpp.Server(settings(xllamacpp, options, os.environ.pop(KEY_VARIABLE)))
    print(f"{READY_PREFIX}{server.listening_address}", flush=True)
    sys.stdin.buffer.read()
    if options.socket:  # whoever started us may be gone
        _remove(Path(options.socket))
    os._exit(0)


def parser() -> argparse.ArgumentParser:
    """What the program can be told."""
    made = argparse.ArgumentParser(prog="python -m smallfirst.models.servers.llama_cpp_main")
    made.add_argument("--model", required=True)
    made.add_argument("--adapter", help="a LoRA adapter as GGUF, on for every request")
    made.add_argument("--socket", help="path ending in .sock; without one it is a free port on loopback")
    made.add_argument("--slots", type=int, default=2)
    made.add_argument("--context", type=int, default=8192)
    made.add_argument("--threads", type=int, default=-1)
    return made


def settings(xllamacpp: Any, options: argparse.Namespace, key: str) -> Any:
    """llama.cpp's own parameters."""
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.socket or "127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.n_parallel = options.slots
    params.n_ctx = options.context
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_threads_http = options.slots + SPARE_CONNECTIONS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    # A slot remembers its last prompt and is told by each request whether it may use it. The prompt cache in RAM is
    # shared by all slots, finds entries by tokens alone and knows neither tenants nor adapters: it stays off.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.kv_unified = False
    if options.adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(options.adapter, 1.0)]
    params.offline = True
    params.ui = params.endpoint_props = False
    params.endpoint_slots = True  # answered by the thread that computes, unlike /health: the watchdog asks it
    params.verbosity = 1  # errors; shown if the engine fails
    return params


def _remove(socket: Path) -> None:
    """The socket, and its folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        socket.unlink()
        socket.parent.rmdir()


def _no_core_dumps() -> None:
    """A crash must leave no prompts on disk."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
