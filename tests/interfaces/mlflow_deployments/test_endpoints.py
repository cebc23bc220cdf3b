"""Endpoints of a server: they answer, change without a dropped request, and survive a restart."""

import asyncio
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fixtures.endpoints import NAME, config, register_words
from fixtures.server import RunningServer, run_server
from fixtures.waiting import beside

from smallfirst.base.errors import RegistryError
from smallfirst.data.dataset import Dataset
from smallfirst.interfaces.mlflow_deployments import endpoints
from smallfirst.interfaces.mlflow_deployments.endpoints import API, Endpoints
from smallfirst.ledger.keys import KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.registry import versions
from smallfirst.tasks.classify import Classify


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory, toy_rows: Dataset, toy_task: Classify) -> Iterator[None]:
    """A store with two versions of one model, the first of them champion."""
    folder = tmp_path_factory.mktemp("endpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(folder / "state"))
        for live in (True, False):
            register_words(folder / "model", toy_rows, toy_task, live=live)
        yield


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Endpoints]:
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


def answered_by(server: RunningServer) -> str:
    return str(ask(server).json()["smallfirst"]["answered_by"])


def test_an_endpoint_answers_and_is_kept(plugin: Endpoints, server: RunningServer) -> None:
    made = httpx.post(f"{server.url}{API}", json={"name": "desk", **config(version="@champion")}, timeout=60).json()
    assert made["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert [entity["live_version"] for entity in made["config"]["served_entities"]] == ["1", "2"]
    assert httpx.get(f"{server.url}{API}").json() == {"endpoints": [made]}
    assert httpx.get(f"{server.url}{API}/desk").json() == made
    found = ask(server).json()
    assert found["choices"][0]["message"]["content"] == "card_arrival"
    assert (found["smallfirst"]["route"], found["smallfirst"]["answered_by"]) == ("tickets", "tickets@1")
    assert ask(server, "desk/served-models/next").json()["smallfirst"]["answered_by"] == "next@2"
    assert [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]][:1] == ["desk"]
    [file] = plugin.folder.iterdir()
    assert (stat.S_IMODE(plugin.folder.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    again = httpx.post(f"{server.url}{API}", json={"name": "desk", **config()})
    assert (again.status_code, "already" in again.text) == (400, True)
    for name in ("desk", "dsk"):
        assert httpx.delete(f"{server.url}{API}/{name}").status_code == 200
    assert ask(server).status_code == 404
    assert [*plugin.folder.iterdir()] == []


def test_the_old_config_stays_live_if_the_new_one_cannot_be_had(plugin: Endpoints, server: RunningServer) -> None:
    plugin.create({"name": "desk", **config()})
    shares = [{"served_model_name": name, "traffic_percentage": 60} for name in ("tickets", "next")]
    for changes, words in (
        ({"served_entities": [{"entity_name": NAME, "entity_version": "9"}]}, "has no version 9"),
        ({"served_entities": [{"entity_name": NAME, "entity_version": "@shadow"}]}, "shadow"),
        ({"served_entities": [{"entity_name": "tickets"}]}, '"tickets" is not a model name'),
        ({"traffic_config": {"routes": shares}}, "sum to 120"),
    ):
        refused = httpx.put(f"{server.url}{API}/desk/config", json=changes, timeout=60)
        assert (refused.status_code, words in refused.json()["error"]["message"]) == (400, True), refused.text
    assert (answered_by(server), plugin.shown("desk")["config"]["config_version"]) == ("tickets@1", 1)
    unknown = httpx.get(f"{server.url}{API}/dsk")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert 'no endpoint is called "dsk" — did you mean "desk"?' in unknown.json()["error"]["message"]


def test_a_config_changes_without_a_dropped_request(plugin: Endpoints, server: RunningServer) -> None:
    plugin.create({"name": "desk", **config()})
    over, statuses, seen = threading.Event(), [], set()

    def keep_asking() -> None:
        while not over.is_set():
            reply = ask(server)
            statuses.append(reply.status_code)
            seen.add(reply.json()["smallfirst"]["route"])

    with beside(keep_asking, (), (), ()):
        for first in (0, 100, 0):
            plugin.update("desk", {"traffic_config": config(first=first)["traffic_config"]})
            assert ask(server).json()["smallfirst"]["route"] == ("tickets" if first else "next")
        over.set()
    assert set(statuses) == {200}
    assert seen == {"tickets", "next"}


def test_an_alias_is_looked_up_at_the_next_update(plugin: Endpoints, server: RunningServer) -> None:
    plugin.create({"name": "desk", **config(version="@champion")})
    versions.promote(NAME, 2)
    assert answered_by(server) == "tickets@1"
    plugin.update("desk", {})
    assert answered_by(server) == "tickets@2"
    versions.rollback(NAME)


def test_a_server_that_starts_again_has_its_endpoints_and_those_that_cannot_be_loaded_say_why(
    plugin: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.create({"name": "desk", **config()})
    again = Endpoints(plugin.folder)
    assert again.shown("desk") == plugin.shown("desk")

    def fail(*_: object) -> None:
        raise RegistryError("the files are gone")

    with monkeypatch.context() as patch:
        patch.setattr(endpoints, "load_endpoint", fail)
        waiting = Endpoints(plugin.folder)
    state = waiting.shown("desk")["state"]
    assert (state["ready"], state["why"], waiting.find("desk", "")) == ("NOT_READY", "the files are gone", None)
    assert waiting.update("desk", {})["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    for one in (again, waiting):
        asyncio.run(one.aclose())
