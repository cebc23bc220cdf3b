"""llama.cpp's server for benchmarks/serving/speed.py, through xllamacpp, in a separate process.

    python -m benchmarks.peers.serve_llama --model FILE.gguf --port PORT [--parallel N] …

Takes those options of the `llama-server` program that the benchmark uses, under their names there, so that either can
be run. No key and no web page.
"""

from __future__ import annotations

import argparse
import signal
import threading

import xllamacpp

FLASH = {"auto": -1, "off": 0, "on": 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    for name in ("port", "parallel", "ctx-size", "threads-http", "threads", "threads-batch", "cache-ram"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--ubatch-size", type=int, default=512)
    parser.add_argument("--flash-attn", choices=FLASH, default="auto")
    parser.add_argument("--no-cache-prompt", action="store_true")
    wanted = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = wanted.model
    params.hostnames, params.port = ["127.0.0.1"], wanted.port
    params.n_parallel, params.n_ctx, params.n_threads_http = wanted.parallel, wanted.ctx_size, wanted.threads_http
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = wanted.threads, wanted.threads_batch
    params.n_batch, params.n_ubatch = wanted.batch_size, wanted.ubatch_size
    params.cache_prompt, params.cache_ram_mib = not wanted.no_cache_prompt, wanted.cache_ram
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(FLASH[wanted.flash_attn])
    params.offline, params.ui, params.verbosity = True, False, 1
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # xllamacpp installs its own handler, which does not end this process
    print(f"listening {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
