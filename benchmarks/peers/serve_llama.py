"""llama.cpp's server for benchmarks/serving/speed.py, through xllamacpp, in a separate process.

    python -m benchmarks.peers.serve_llama --model FILE.gguf --port PORT [--parallel N] …

Takes those options of the `llama-server` program that the benchmark uses, under their names there. No key, no web page.
"""

from __future__ import annotations

import argparse
import signal
import threading

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    for name in ("port", "parallel", "ctx-size", "threads-http", "threads", "threads-batch", "cache-ram"):
        parser.add_argument(f"--{name}", type=int, required=True)
    wanted = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = wanted.model
    params.hostnames, params.port = ["127.0.0.1"], wanted.port
    params.n_parallel, params.n_ctx, params.n_threads_http = wanted.parallel, wanted.ctx_size, wanted.threads_http
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = wanted.threads, wanted.threads_batch
    params.cache_ram_mib, params.offline, params.ui, params.verbosity = wanted.cache_ram, True, False, 1
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # xllamacpp installs its own handler, which does not end this process
    print(f"listening {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
