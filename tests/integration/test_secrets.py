"""A canary stands in every setting and variable that can hold a secret, and afterwards in no file, log or answer."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.jobs import TIMEOUT_S, job_spec
from fixtures.server import run_server

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.base.paths import home
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.mlflow_deployments.config import parse_config
from smallfirst.interfaces.mlflow_deployments.endpoints import Endpoints
from smallfirst.ledger.keys import KeyPolicy, hash_key, home_key_store
from smallfirst.ledger.ledger import Ledger
from smallfirst.registry.runs import client, store_errors

CANARY = "c4n4ry-in-the-c04lmine"
TRACKING = f"http://ada:{CANARY}@127.0.0.1:9/mlflow?token={CANARY}"


@pytest.fixture
def echoing() -> Iterator[str]:
    """The address of an upstream that refuses every request and quotes all its headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.dumps({"error": {"message": f"I refuse {dict(self.headers)}"}}).encode()
            self.send_response(401)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", TRACKING)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"https://{CANARY}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("PROD_OPENAI", "SMALLFIRST_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, CANARY)


def external(url: str = "https://llm.example/v1", **changes: Any) -> dict[str, Any]:
    address = {"openai_api_key": "{{secrets/prod/openai}}", "openai_api_base": url}
    model = {"name": "gpt-4o-mini", "provider": "openai", "task": "llm/v1/chat", "openai_config": address}
    return {"name": "big", "external_model": {**model, **changes}}


def files_with(secret: str, folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes())


@pytest.mark.usefixtures("planted")
def test_no_secret_reaches_a_file_a_log_or_an_answer(
    echoing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key_store = home_key_store()
    _, user = key_store.create("desk", KeyPolicy())
    plugin, ledger = Endpoints(home() / "endpoints"), Ledger(home() / "ledger.db")
    entity = {**external(echoing), "environment_vars": {"TOKEN": CANARY}}
    shown = [json.dumps(plugin.create({"name": "desk", "served_entities": [entity]}))]
    message = {"model": "desk", "messages": [{"role": "user", "content": "hello"}]}
    with run_server({}, ledger, plugins=[plugin], key_store=key_store) as server:
        for key, statuses in ((CANARY, (401, 401)), (user, (502, 200))):
            with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False) as http:
                answers = [
                    http.post(f"{server.url}/v1/chat/completions", json=message),
                    http.get(f"{server.url}/v1/models"),
                ]
            assert tuple(answer.status_code for answer in answers) == statuses
            shown += [f"{answer.headers} {answer.text}" for answer in answers]
    asyncio.run(plugin.aclose())
    ledger.close()
    job = queue.submit(job_spec(train_rows=str(tmp_path / "none.jsonl")))
    end = time.monotonic() + TIMEOUT_S
    while not job.ended and time.monotonic() < end:
        time.sleep(0.1)
    shown += [*(str(event) for event in job.events), caplog.text]
    with pytest.raises(SmallfirstError, match=r"http://\*\*\*@127\.0\.0\.1:9") as refused, store_errors():
        client().get_experiment_by_name("toys")
    shown += traceback.format_exception(refused.value)
    assert [text for text in shown if CANARY in text or hash_key(CANARY) in text] == []
    assert files_with(CANARY, tmp_path) == []
    assert all(f"{home().name}/ledger.db" in file for file in files_with(hash_key(user), tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"served_entities": [external(f"https://ada:{CANARY}@llm.example/v1")]},
        {"served_entities": [external(f"https://llm.example/v1?api-version=1&sig={CANARY}")]},
        {"served_entities": [external(openai_config={"openai_api_key": CANARY})]},
        {"served_entities": [external(openai_config={"openai_api_key": [CANARY]})]},
        {"served_entities": [external(amazon_bedrock_config={"aws_secret_access_key": CANARY})]},
        {
            "served_entities": [
                external(custom_provider_config={"custom_provider_url": f"https://ada:{CANARY}@llm.example"})
            ]
        },
        {"served_entities": [external()], "ai_gateway": {"provider": {"api_key": CANARY}}},
        {"served_entities": [external()], "telemetry_config": {"exporters": [{"password": CANARY}]}},
    ],
    ids=["user", "query", "key", "list", "bedrock", "custom", "gateway", "telemetry"],
)
@pytest.mark.usefixtures("planted")
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config("desk", values)
    assert CANARY not in "".join(traceback.format_exception(refused.value))
