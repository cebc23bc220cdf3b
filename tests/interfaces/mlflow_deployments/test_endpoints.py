"""Endpoints of a server: they answer, change without a dropped request, follow aliases, and survive a restart."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.endpoints import NAME, PASSED, Large, config, large_server, register_words
from fixtures.server import RunningServer, run_server

from smallfirst.base.errors import RegistryError
from smallfirst.data.dataset import Dataset
from smallfirst.interfaces.mlflow_deployments import endpoints
from smallfirst.interfaces.mlflow_deployments.endpoints import API, Endpoints
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.registry import versions
from smallfirst.tasks.classify import Classify


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, toy_rows: Dataset, toy_task: Classify) -> Iterator[Large]:
    """A store with two versions of one model, the first of them champion, and a large model elsewhere."""
    folder = tmp_path_factory.mktemp("endpoints")
    with pytest.MonkeyPatch.context() as patch, large_server() as found:
        patch.setenv("SMALLFIRST_HOME", str(folder / "state"))
        patch.setenv("PROD_OPENAI", "sk-live-1")
        register_words(folder / "model", toy_rows, toy_task)
        versions.register(folder / "model", PASSED, name=NAME, run_id=None, tags={})
        yield found


@pytest.fixture
def plugin(large: Large, tmp_path: Path) -> Iterator[Endpoints]:
    made = Endpoints(tmp_path / "endpoints")
    yield made
    asyncio.run(made.aclose())


@pytest.fixture
def server(plugin: Endpoints, tmp_path: Path) -> Iterator[RunningServer]:
    ledger = Ledger(tmp_path / "ledger.db")
    with run_server({}, ledger, plugins=[plugin], key_store=KeyStore(ledger)) as found:
        yield found
    ledger.close()


def ask(server: RunningServer, path: str = "desk", text: str = "where is my card", **headers: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}]}
    url = f"{server.url}/serving-endpoints/{path}/invocations"
    return httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)


def routes(tickets: int) -> dict[str, Any]:
    return {"traffic_config": config("http://127.0.0.1:9/v1", tickets=tickets)["traffic_config"]}


def answered_by(server: RunningServer) -> str:
    return str(ask(server).json()["smallfirst"]["answered_by"])


def test_an_endpoint_answers_and_keeps_no_secret(plugin: Endpoints, server: RunningServer, large: Large) -> None:
    made = httpx.post(f"{server.url}{API}", json={"name": "desk", **config(large.url)}, timeout=60).json()
    assert made["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert httpx.get(f"{server.url}{API}").json() == {"endpoints": [made]}
    assert httpx.get(f"{server.url}{API}/desk").json() == made
    found = ask(server).json()
    assert found["choices"][0]["message"]["content"] == "card_arrival"
    assert (found["smallfirst"]["route"], found["smallfirst"]["answered_by"]) == ("tickets", "tickets@1")
    big = ask(server, "desk/served-models/big").json()
    assert big["choices"][0]["message"]["content"] == "refund_request"
    assert large.headers[-1]["authorization"] == "Bearer sk-live-1"
    assert [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]][:1] == ["desk"]
    [file] = plugin.folder.iterdir()
    assert "sk-live-1" not in file.read_text(encoding="utf-8")
    assert (stat.S_IMODE(plugin.folder.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    again = httpx.post(f"{server.url}{API}", json={"name": "desk", **config(large.url)})
    assert (again.status_code, "already" in again.text) == (400, True)
    assert (
        httpx.delete(f"{server.url}{API}/desk").status_code == httpx.delete(f"{server.url}{API}/dsk").status_code == 200
    )
    assert ask(server).status_code == 404
    assert [*plugin.folder.iterdir()] == []


def test_the_old_config_stays_live_if_the_new_one_cannot_be_had(
    plugin: Endpoints, server: RunningServer, large: Large
) -> None:
    plugin.create({"name": "desk", **config(large.url)})
    wrong = {"served_entities": [{"name": "tickets", "entity_name": NAME, "entity_version": "9"}]}
    shares = [{"served_model_name": name, "traffic_percentage": 60} for name in ("tickets", "big")]
    for changes, words in ((wrong, "has no version 9"), ({"traffic_config": {"routes": shares}}, "sum to 120")):
        refused = httpx.put(f"{server.url}{API}/desk/config", json=changes, timeout=60)
        assert (refused.status_code, words in refused.json()["error"]["message"]) == (400, True)
    assert (answered_by(server), plugin.shown("desk")["config"]["config_version"]) == ("tickets@1", 1)
    unknown = httpx.get(f"{server.url}{API}/dsk")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert 'no endpoint is called "dsk" — did you mean "desk"?' in unknown.json()["error"]["message"]


def test_a_config_changes_without_a_dropped_request(plugin: Endpoints, server: RunningServer, large: Large) -> None:
    plugin.create({"name": "desk", **config(large.url)})
    over, statuses, seen = threading.Event(), [], set()

    def keep_asking() -> None:
        while not over.is_set():
            reply = ask(server)
            statuses.append(reply.status_code)
            seen.add(reply.json()["smallfirst"]["route"])

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    for tickets in (0, 100, 0):
        plugin.update("desk", routes(tickets))
        assert ask(server).json()["smallfirst"]["route"] == ("tickets" if tickets else "big")
    over.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert seen == {"tickets", "big"}


def test_a_moved_alias_is_followed_and_one_that_is_gone_is_told_as_long_as_it_is(
    plugin: Endpoints, server: RunningServer, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.create({"name": "desk", **config(large.url, version="@champion")})
    versions.promote(NAME, 2)
    assert plugin.watcher.poll() == ["endpoints"]
    assert answered_by(server) == "tickets@2"
    assert plugin.shown("desk")["config"]["served_entities"][0]["live_version"] == "2"
    versions.rollback(NAME)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "list_versions", lambda name: [])
        assert plugin.watcher.poll() == []
        assert 'no version called "champion"' in plugin.shown("desk")["state"]["why"]
        assert answered_by(server) == "tickets@2"
    plugin.watcher.poll()
    assert "why" not in plugin.shown("desk")["state"]
    assert answered_by(server) == "tickets@1"


def test_a_server_that_starts_again_has_its_endpoints_and_waits_for_those_that_cannot_be_loaded(
    plugin: Endpoints, large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.create({"name": "desk", **config(large.url)})
    again = Endpoints(plugin.folder)
    assert again.shown("desk") == plugin.shown("desk")

    def fail(plan: object) -> None:
        raise RegistryError("the files are gone")

    with monkeypatch.context() as patch:
        patch.setattr(endpoints, "load_endpoint", fail)
        patch.setattr(endpoints, "FOLLOW_EVERY_S", 0.0)  # it is tried again at once
        waiting = Endpoints(plugin.folder)
    assert waiting.shown("desk")["state"]["ready"] == "NOT_READY"
    assert waiting.shown("desk")["state"]["why"] == "the files are gone"
    assert waiting.find("desk", "") is None
    assert waiting.watcher.poll() == ["endpoints"]
    assert waiting.shown("desk")["state"]["ready"] == "READY"
    for one in (again, waiting):
        asyncio.run(one.aclose())


def test_only_an_administrator_changes_endpoints(plugin: Endpoints, large: Large, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "keyed.db")
    keys = KeyStore(ledger)
    admin, user = (keys.create(name, KeyPolicy(role=name))[1] for name in ("admin", "user"))  # type: ignore[arg-type]
    plugin.create({"name": "desk", **config(large.url)})
    with run_server({}, ledger, plugins=[plugin], key_store=keys) as server:
        statuses = {
            key: [
                httpx.get(f"{server.url}{API}", headers={"authorization": f"Bearer {key}"}).status_code,
                ask(server, authorization=f"Bearer {key}").status_code,
            ]
            for key in (admin, user, "none")
        }
    ledger.close()
    assert statuses == {admin: [200, 200], user: [403, 200], "none": [401, 401]}
