"""What endpoints stand on in these tests: small registered models, and an OpenAI-style server that answers at once."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from smallfirst import registry
from smallfirst.data.dataset import Dataset
from smallfirst.gate import GateLine, Verdict
from smallfirst.interfaces.endpoint_folder import EndpointFolder, Kept, folder_of
from smallfirst.models.linear import LinearScorer
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.routing.certificate import Certificate
from smallfirst.stats import wilson
from smallfirst.tasks.classify import Classify

NAME = "main.ml.tickets"
PASSED = Verdict(
    candidate="words",
    lines=(GateLine(bar="accuracy at least 0.9", measured="1.0 n=24", passed=True),),
    passed=True,
    evaluation_fingerprint="e1",
)


def register_words(folder: Path, rows: Dataset, task: Classify, *, name: str = NAME, live: bool = True) -> int:
    """The version of a linear model that learnt `rows`; champion if `live`."""
    LinearScorer.fit("words", rows, task).save(folder, Manifest(kind="words", task=task, base=""))
    version = registry.register(folder, PASSED, name=name, run_id=None, tags={}).version
    if live:
        registry.promote(name, version)
    return version


def register_tiny(folder: Path, tiny: Path, task: Classify, *, name: str) -> Path:
    """The files of a causal model read at one position, registered as champion of `name`."""
    from smallfirst.models.codes import choose_codes
    from smallfirst.models.local import load_causal

    shutil.copytree(tiny, folder)
    codes = choose_codes(task.labels, load_causal(tiny)[1])
    write_manifest(folder, Manifest(kind="codes", task=task, codes=codes, base="tiny"))
    version = registry.register(folder, PASSED, name=name, run_id=None, tags={}).version
    return registry.promote(name, version).folder


def certify(version: int, threshold: float, *, issued: bool = True, name: str = NAME) -> None:
    """Keeps a certificate of this threshold with a version."""
    found = Certificate(
        issued=issued,
        why="of kept answers at most 5.0 % are wrong" if issued else "too few labels: about 200 more are needed",
        promised_error=0.05,
        confidence=0.95,
        threshold=threshold,
        n_labels=300,
        n_kept=200,
        errors_kept=2,
        error_bound=0.03,
        coverage=wilson(200, 300),
        below="escalate",
        below_why="",
        below_difference=None,
        temperature=1.0,
        curve=(),
        model_fingerprint="m",
        dataset_fingerprint="d",
    )
    registry.attach(name, version, "certificate.json", found.model_dump_json().encode())


class Large:
    """A running OpenAI-style server: what it was asked, and with which key."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []


@contextmanager
def large_server(text: str = "refund_request") -> Iterator[Large]:
    """A server on loopback that answers every chat with `text`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            large.asked.append(body)
            large.keys.append(self.headers.get("authorization", ""))
            message = {"role": "assistant", "content": text}
            answer = {
                "id": "1",
                "object": "chat.completion",
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
            }
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    large = Large(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield large
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def config(url: str, *, tickets: int = 100, version: str = "1", **more: Any) -> dict[str, Any]:
    """A config in Databricks' words: a registered model and a large one elsewhere."""
    return {
        "served_entities": [
            {
                "name": "tickets",
                "entity_name": NAME,
                "entity_version": version,
                "workload_size": "Small",
                "scale_to_zero_enabled": True,
            },
            {
                "name": "big",
                "external_model": {
                    "name": "gpt-4o-mini",
                    "provider": "openai",
                    "task": "llm/v1/chat",
                    "openai_config": {"openai_api_key": "{{secrets/prod/openai}}", "openai_api_base": url},
                },
            },
        ],
        "traffic_config": {
            "routes": [
                {"served_model_name": "tickets", "traffic_percentage": tickets},
                {"served_model_name": "big", "traffic_percentage": 100 - tickets},
            ]
        },
        **more,
    }


def kept(name: str, body: dict[str, Any] | None = None) -> Kept:
    """An endpoint on disk that no process serves."""
    body = body or {"name": name, "config": config("http://127.0.0.1:9/v1", tickets=80)}
    at = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    values = {"id": "0" * 32, "name": name, "number": 1, "created_by": "ada", "port": 9, "body": body}
    return Kept.model_validate({**values, **at})


def on_disk(name: str, body: dict[str, Any] | None = None) -> EndpointFolder:
    """The same in its folder."""
    found = folder_of(name)
    found.folder.mkdir()
    found.want(kept(name, body))
    found.take_over()
    return found
