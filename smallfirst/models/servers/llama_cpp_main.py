"""The program of the child process: llama.cpp serving one GGUF file on a Unix socket that only its user may open.

Its argument is JSON: `model`, `socket`, `slots`, `context_tokens`, `threads`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

KEY_VARIABLE = "SMALLFIRST_ENGINE_SECRET_KEY"
BATCH_TOKENS = 512
"""Prompt tokens read at a time: until they are read, the engine notices neither a probe nor a closed connection."""
SPARE_CONNECTIONS = 4
"""Connections beside one for each slot: probes, and clients whose leaving is not noticed yet."""


def main() -> None:
    """Serve one file until standard input ends."""
    import xllamacpp

    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must leave no prompts on disk
    options = json.loads(sys.argv[1])
    _server = xllamacpp.Server(server_parameters(xllamacpp, options, os.environ.pop(KEY_VARIABLE)))
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):  # the parent may be gone
        Path(options["socket"]).unlink()
        Path(options["socket"]).parent.rmdir()
    os._exit(0)


def server_parameters(xllamacpp: Any, options: dict[str, Any], key: str) -> Any:
    """Return llama.cpp's own parameters for the program's options."""
    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.hostnames = [options["socket"]]
    params.port = 0
    params.api_keys = [key]
    params.n_parallel = options["slots"]
    params.n_ctx = options["context_tokens"]
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_threads_http = options["slots"] + SPARE_CONNECTIONS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"] or -1
    # A slot caches its last prompt, and each request says whether it may reuse that. The prompt cache in RAM is shared
    # by all slots, finds entries by tokens alone and knows no tenants: it stays off.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.kv_unified = False
    params.offline = True
    params.ui = params.endpoint_props = False
    params.endpoint_slots = True  # answered by the thread that computes, unlike /health: the watchdog asks it
    params.verbosity = 1  # errors only; shown if the engine fails
    return params


if __name__ == "__main__":
    main()
