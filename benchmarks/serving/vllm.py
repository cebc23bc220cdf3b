"""Two adapters from the registry behind one vLLM: parity with PyTorch, and requests/s.

    python -m benchmarks.serving.vllm FOLDER --url http://127.0.0.1:8000 [--rounds 3] [--rows 100]

FOLDER holds tasks that `smallfirst run` has promoted with `adapters: kept`, such as `banking77` and `clinc150`. Each
version is asked through `serve` on loopback, over PyTorch and over the vLLM at the address; the engines take turns.
Give both as many threads. Figures go to benchmarks/results/vllm.json; the page says what they mean.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS
from benchmarks.serving.load import closed_loop, post
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Model
from smallfirst.models.servers.vllm_config import VllmServer
from smallfirst.pipeline.parity import check_parity, parity_rows
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file
from smallfirst.registry import versions
from smallfirst.serving.loopback import Address, serve_on_loopback

CLIENTS = (1, 8, 32)


class Served:
    """One promoted version, and the rows that its model was measured on."""

    def __init__(self, task: Path) -> None:
        self.project = Project.read(read_task_file(task / "task.yaml"), Progress(quiet=True))
        file = self.project.file
        self.version = versions.resolve(f"{file.register_to}@champion")
        self.name = f"{file.name}-small@{self.version.version}"
        self.run_folder = RunFolder.latest(file.name, self.version.tags.get("run"))

    def load(self, vllm: VllmServer | None) -> Model:
        return load_model(self.version.folder, name=self.name, vllm=vllm)

    def parity(self, address: Address) -> dict[str, Any]:
        """How many calibration rows have the measured answer, and how far confidences are apart."""
        rows = parity_rows(self.project, self.run_folder, self.version.tags["candidate"])
        found = asyncio.run(check_parity(address, self.name, rows, task=self.project.task))
        gap = found.largest_gap
        return {"n": found.n, "same": found.n_same, "gap": gap, "differences": [d.why for d in found.differences]}

    def requests(self, key: str, n: int) -> list[bytes]:
        headers = {"Authorization": f"Bearer {key}"}
        texts = [row.messages[-1].content for row in self.project.rows.test.examples]
        chosen = itertools.islice(itertools.cycle(texts), n)
        body = [{"model": self.name, "messages": [{"role": "user", "content": text}]} for text in chosen]
        return [post("/v1/chat/completions", one, headers) for one in body]


@contextmanager
def endpoint(served: Sequence[Served], vllm: VllmServer | None) -> Iterator[Address]:
    with serve_on_loopback({one.name: one.load(vllm) for one in served}) as address:
        yield address


def mixed(served: Sequence[Served], key: str, n: int) -> list[bytes]:
    """Requests to all versions in turn."""
    columns = [one.requests(key, -(-n // len(served))) for one in served]
    return [request for row in zip(*columns, strict=True) for request in row][:n]


def rate(served: Sequence[Served], address: Address, clients: int, n: int) -> dict[str, float]:
    port = int(address.base_url.rsplit(":", 1)[1].split("/")[0])
    requests = mixed(served, address.key, n)
    load = asyncio.run(closed_loop(port, requests, requests, clients=clients))
    seconds = sorted(answer.seconds for answer in load.answers)
    return {
        "requests_per_s": load.requests_per_s,
        "p50_ms": 1000 * statistics.median(seconds),
        "p95_ms": 1000 * seconds[int(0.95 * (len(seconds) - 1))],
        "failed": sum(answer.status != 200 for answer in load.answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", required=True, help="address of a vLLM over the base of these tasks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100, help="requests a round and number of clients")
    wanted = parser.parse_args()
    served = [Served(path.parent) for path in sorted(wanted.folder.glob("*/task.yaml"))]
    vllm = VllmServer(url=wanted.url, slots=32)
    found: dict[str, Any] = {"versions": [one.name for one in served], "parity": {}, "rates": [], "rows": wanted.rows}
    with endpoint(served, None) as torch, endpoint(served, vllm) as joined:
        sides: Mapping[str, Address] = {"PyTorch": torch, "vLLM": joined}
        rate(served, joined, 8, 8)
        for one in served:  # over PyTorch it was checked before promotion
            found["parity"][one.name] = one.parity(joined)
            print(one.name, found["parity"][one.name], flush=True)
        order = list(sides.items())
        for turn, clients in itertools.product(range(wanted.rounds), CLIENTS):
            for side, address in order if turn % 2 else order[::-1]:
                one = {"side": side, "clients": clients, **rate(served, address, clients, wanted.rows)}
                found["rates"].append(one)
                print(one, flush=True)
    found["load"] = subprocess.run(["uptime"], capture_output=True, text=True, check=False).stdout.strip()
    (RESULTS / "vllm.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
