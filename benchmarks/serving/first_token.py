"""Measure the time to the first text of a streamed answer that a Router accepts or escalates.

    python -m benchmarks.serving.first_token TASK.yaml ROWS.jsonl [--rows 40]      # a running champion and its large model

The server is `smallfirst serve`. A draft that may still be escalated is held back, so the first text of an
escalated answer comes after the small model's pass and the large model's first token; an accepted label comes in one chunk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

import openai

from benchmarks.paths import RESULTS
from smallfirst.project.task_file import read_task_file

RESULT = RESULTS / "first_token.md"


def main() -> None:
    """Ask, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rows", dest="n", type=int, default=40)
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in options.rows.read_text().splitlines()]
    chosen = random.Random(1).sample(texts, options.n)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "smallfirst.cli.main", "serve", str(options.task), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    name = read_task_file(options.task).name
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300, max_retries=0)
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    try:
        for _ in range(600):
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                time.sleep(0.5)
        for text in chosen:
            began, first, said = time.perf_counter(), 0.0, None
            messages = [{"role": "user", "content": text}]
            for chunk in client.chat.completions.create(model=name, messages=messages, stream=True):  # type: ignore[call-overload]
                if not first and chunk.choices and chunk.choices[0].delta.content:
                    first = time.perf_counter() - began
                said = getattr(chunk, "smallfirst", None) or said
            assert said is not None
            times[said["route"]].append((first * 1000, said["first_token_ms"]))
            print(f"{said['route']}: {first * 1000:.0f} ms", flush=True)
    finally:
        server.terminate()
        server.wait(timeout=60)
    lines = ["# Time to the first token through a Router", ""]
    lines += [f"`python -m benchmarks.serving.first_token TASK.yaml ROWS.jsonl --rows {options.n}`, {date.today()},"]
    lines += [
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}. One client, streamed.",
        "",
    ]
    lines += [
        "| route | n | median, at the client | worst | median, as the server reports it |",
        "|---|---|---|---|---|",
    ]
    for route, seen in sorted(times.items()):
        client_ms, server_ms = [a for a, _ in seen], [b for _, b in seen]
        lines.append(
            f"| {route} | {len(seen)} | {statistics.median(client_ms):.0f} ms | {max(client_ms):.0f} ms | "
            f"{statistics.median(server_ms):.0f} ms |"
        )
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
