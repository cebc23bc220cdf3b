"""A canary stands in every setting and variable that can hold a secret, and afterwards in no file, log or answer."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fixtures.endpoints import http_server
from fixtures.jobs import TIMEOUT_S, job_spec
from fixtures.server import run_server
from fixtures.waiting import until

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.paths import home
from smallfirst.interfaces.jobs import queue
from smallfirst.ledger.keys import KeyPolicy, hash_key, home_key_store
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.pricing import PriceBook
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.model import EndpointModel
from smallfirst.registry.runs import client, store_errors

CANARY = "c4n4ry-in-the-c04lmine"
TRACKING = f"http://ada:{CANARY}@127.0.0.1:9/mlflow?token={CANARY}"


@pytest.fixture
def echoing() -> Iterator[str]:
    """The address of an upstream that refuses every request and quotes all its headers."""
    with http_server(lambda _, headers, __: (401, {"error": {"message": f"I refuse {dict(headers)}"}})) as address:
        yield f"{address}/v1"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", TRACKING)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"https://{CANARY}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("PROD_OPENAI", "SMALLFIRST_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, CANARY)


def files_with(secret: str, folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes())


@pytest.mark.usefixtures("planted")
def test_no_secret_reaches_a_file_a_log_or_an_answer(
    echoing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key_store = home_key_store()
    _, user = key_store.create("desk", KeyPolicy())
    asked = EndpointConfig(base_url=echoing, model="gpt-4o-mini", api_key_env="PROD_OPENAI", max_retries=0)
    ledger = Ledger(home() / "ledger.db")
    shown: list[str] = []
    message = {"model": "desk", "messages": [{"role": "user", "content": "hello"}]}
    with run_server({"desk": EndpointModel(asked, PriceBook())}, ledger, key_store=key_store) as server:
        for key, statuses in ((CANARY, (401, 401)), (user, (502, 200))):
            with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False) as http:
                answers = [
                    http.post(f"{server.url}/v1/chat/completions", json=message),
                    http.get(f"{server.url}/v1/models"),
                ]
            assert tuple(answer.status_code for answer in answers) == statuses
            shown += [f"{answer.headers} {answer.text}" for answer in answers]
    ledger.close()
    job = queue.submit(job_spec(train_rows=str(tmp_path / "none.jsonl")))
    until(lambda: job.ended, seconds=TIMEOUT_S)
    shown += [*(str(event) for event in job.events), caplog.text]
    with pytest.raises(SmallfirstError, match=r"http://\*\*\*@127\.0\.0\.1:9") as refused, store_errors():
        client().get_experiment_by_name("toys")
    shown += traceback.format_exception(refused.value)
    assert [text for text in shown if CANARY in text or hash_key(CANARY) in text] == []
    assert files_with(CANARY, tmp_path) == []
    assert all(f"{home().name}/ledger.db" in file for file in files_with(hash_key(user), tmp_path))
