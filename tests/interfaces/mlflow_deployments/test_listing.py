"""Any server as MLflow's and Databricks' clients address it: the name in the path, and lists in their words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from smallfirst.interfaces.mlflow_deployments.listing import EndpointListing
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.serving.app import build_app
from smallfirst.serving.ledger.ledger import Ledger, LedgerRow
from smallfirst.serving.settings import ServeSettings


class Echo:
    """Says its name and what it was asked."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, name: str) -> None:
        self.name = name

    async def complete(self, request: Request) -> Completion:
        return Completion(text=f"{self.name}: {request.text}", answered_by=self.name, latency_ms=1, cost_usd=0)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        """Holds nothing."""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.db")
    yield found
    found.close()


@pytest.fixture
def app(ledger: Ledger) -> Starlette:
    models = {name: Echo(name) for name in ("desk", "desk/big", "other")}
    return build_app(models, ledger=ledger, settings=ServeSettings(), plugins=[EndpointListing(lambda: models)])


def send(app: Starlette, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(sent())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/endpoints/desk/invocations", "desk"),
        ("/serving-endpoints/other/invocations", "other"),
        ("/serving-endpoints/desk/served-models/big/invocations", "desk/big"),
    ],
)
def test_the_name_in_the_path_is_asked_and_written_down(app: Starlette, ledger: Ledger, path: str, name: str) -> None:
    chat = send(app, "POST", path, {"model": "desk", "messages": [{"role": "user", "content": "hi"}]}).json()
    assert (chat["model"], chat["choices"][0]["message"]["content"]) == (name, f"{name}: hi")
    table = send(app, "POST", path, {"inputs": ["a", "b"]}).json()
    assert table["predictions"] == [f"{name}: a", f"{name}: b"]
    assert [row.served_name for row in ledger.entries(LedgerRow)] == [name] * 3


def test_a_name_that_is_not_served_is_refused(app: Starlette) -> None:
    for path in ("/endpoints/dsk/invocations", "/serving-endpoints/desk/served-models/small/invocations"):
        refused = send(app, "POST", path, {"inputs": ["a"]})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
    assert send(app, "GET", "/api/2.0/serving-endpoints/dsk").json()["error"]["code"] == "endpoint_not_found"


def test_what_is_served_is_listed_in_both_words(app: Starlette) -> None:
    for path in ("/api/2.0/serving-endpoints", "/api/2.0/serving-endpoints/"):
        found = send(app, "GET", path).json()["endpoints"]
        assert [(one["name"], one["state"]["ready"]) for one in found][:2] == [("desk", "READY"), ("desk/big", "READY")]
    (desk, *_) = send(app, "GET", "/api/2.0/endpoints/").json()["endpoints"]
    assert desk == send(app, "GET", "/api/2.0/endpoints/desk").json()
    assert desk["endpoint_url"] == "/endpoints/desk/invocations"
    assert set(desk) == {"name", "endpoint_type", "model", "endpoint_url", "limit"}
