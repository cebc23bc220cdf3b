"""Fine-tune a real base model through the unmodified openai client on `smallfirst serve` and call the result.

    python -m benchmarks.compatibility.openai_fine_tuning ROWS.jsonl [--rows 200] [--epochs 2]

ROWS.jsonl holds `text` and `label`. The server is `smallfirst serve` in a separate process, without a task file;
it is restarted before the model is called. Printed: each change of status, the last events, the tokens
trained, and the answers to 20 rows that were not trained on.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
HELD_OUT = 20


@contextmanager
def server(folder: Path) -> Iterator[openai.OpenAI]:
    """Yield a client of a server that runs during the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "smallfirst.cli.main",
        "serve",
        "--port",
        str(port),
        "--fine-tuning",
        "--base",
        BASE,
    ]
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300)
    try:
        for _ in range(240):
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                time.sleep(0.5)
        yield client
    finally:
        child.terminate()
        child.wait(timeout=60)


def conversation(row: dict[str, str]) -> dict[str, object]:
    asked = {"role": "user", "content": row["text"]}
    return {"messages": [asked, {"role": "assistant", "content": row["label"].replace("_", " ")}]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rows", dest="n", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    wanted = parser.parse_args()
    read = [json.loads(line) for line in wanted.rows.open(encoding="utf-8")][: wanted.n + HELD_OUT]
    train, held_out = read[:-HELD_OUT], read[-HELD_OUT:]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "chat.jsonl").write_text("".join(json.dumps(conversation(row)) + "\n" for row in train))
        with server(folder) as client:
            file = client.files.create(file=(folder / "chat.jsonl").open("rb"), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(
                model=BASE,
                training_file=file.id,
                suffix="demo",
                method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": wanted.epochs}}},
            )
            status = ""
            while status not in ("succeeded", "failed", "cancelled"):
                job = client.fine_tuning.jobs.retrieve(job.id)
                if job.status != status:
                    status = job.status
                    print(f"[{time.perf_counter() - began:5.0f} s] {status}", flush=True)
                time.sleep(1)
            events = client.fine_tuning.jobs.list_events(job.id, limit=3)
            print(*(event.message for event in events.data), sep="\n")
            print(f"trained tokens: {job.trained_tokens}; model: {job.fine_tuned_model}; error: {job.error}")
        with server(folder) as client:
            assert job.fine_tuned_model in [model.id for model in client.models.list()]
            right = 0
            for row in held_out:
                messages = conversation(row)["messages"][:1]  # type: ignore[index]
                answer = client.chat.completions.create(model=job.fine_tuned_model, messages=messages)  # type: ignore[arg-type]
                right += answer.choices[0].message.content == row["label"].replace("_", " ")
            print(f"{right} of {HELD_OUT} rows that were not trained on answered with the right label, word for word")


if __name__ == "__main__":
    main()
