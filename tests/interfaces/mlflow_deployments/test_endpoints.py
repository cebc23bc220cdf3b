"""Endpoints as processes: they answer, change without dropping a request, follow aliases; a killed one is noticed."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fixtures.endpoints import NAME, PASSED, Large, config, large_server, on_disk, register_words

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.base.extensions import Registry
from smallfirst.data.dataset import Dataset
from smallfirst.interfaces.jobs.supervisor import output_tail
from smallfirst.interfaces.mlflow_deployments import endpoints, server
from smallfirst.interfaces.mlflow_deployments.endpoints import EndpointFolder, describe, endpoint_folder
from smallfirst.interfaces.mlflow_deployments.server import LiveEndpoint
from smallfirst.ledger.database import KEYS
from smallfirst.ledger.keys import KeyPolicy, home_key_store
from smallfirst.registry import versions
from smallfirst.serving import plugins
from smallfirst.serving.plugins import Plugin
from smallfirst.tasks.classify import Classify

pytestmark = pytest.mark.usefixtures("warm_jobs")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, toy_rows: Dataset, toy_task: Classify) -> Iterator[Large]:
    """A store with two versions of one model, the first of them champion, and a large model elsewhere."""
    folder = tmp_path_factory.mktemp("endpoints")
    with pytest.MonkeyPatch.context() as patch, large_server() as found:
        patch.setenv("SMALLFIRST_HOME", str(folder / "state"))
        register_words(folder / "model", toy_rows, toy_task)
        versions.register(folder / "model", PASSED, name=NAME, run_id=None, tags={})
        yield found
        for endpoint in endpoints.all_endpoints():
            endpoints.delete(endpoint.name)


def ask(endpoint: EndpointFolder, text: str = "where is my card", **headers: str) -> httpx.Response:
    body = {"model": endpoint.name, "messages": [{"role": "user", "content": text}]}
    url = describe(endpoint)["url"]
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)


def until(true: Callable[[], bool], within_s: float = 60) -> bool:
    end = time.monotonic() + within_s
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def routes(tickets: int) -> dict[str, Any]:
    return {"traffic_config": config("http://127.0.0.1:9/v1", tickets=tickets)["traffic_config"]}


def test_an_endpoint_lives_changes_and_goes(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROD_OPENAI", "sk-live-1")
    desk = endpoints.create("desk", config(large.url, version="@champion"))
    try:
        answers_and_keeps_no_secret(desk, large)
        goes_on_with_the_old_config_if_the_new_one_cannot_be_had(desk)
        changes_without_dropping_a_request(desk)
        follows_an_alias(desk)
        is_noticed_when_killed_and_started_again(desk)
    finally:
        assert endpoints.delete("desk")
    assert not endpoints.delete("desk")
    assert not desk.folder.exists()
    assert [path.name for path in desk.folder.parent.iterdir()] == []


def answers_and_keeps_no_secret(desk: EndpointFolder, large: Large) -> None:
    found = ask(desk).json()
    assert found["choices"][0]["message"]["content"] == "card_arrival"
    assert (found["smallfirst"]["route"], found["smallfirst"]["answered_by"]) == ("tickets", "tickets@1")
    big = httpx.post(
        f"{describe(desk)['url']}/serving-endpoints/desk/served-models/big/invocations",
        json={"messages": [{"role": "user", "content": "hello"}]},
        timeout=60,
        trust_env=False,
    ).json()
    assert big["choices"][0]["message"]["content"] == "refund_request"
    assert large.keys[-1] == "Bearer sk-live-1"
    files = [path for path in desk.folder.iterdir() if path.is_file()]
    assert all("sk-live-1" not in path.read_text(encoding="utf-8") for path in files)
    assert stat.S_IMODE(desk.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (desk.config_path, desk.output)} == {0o600}
    with pytest.raises(ConfigError, match='an endpoint "desk" already'):
        endpoints.create("desk", config(large.url))


def goes_on_with_the_old_config_if_the_new_one_cannot_be_had(desk: EndpointFolder) -> None:
    wrong = {"served_entities": [{"name": "tickets", "entity_name": NAME, "entity_version": "9"}]}
    with pytest.raises(ConfigError, match="has no version 9"):
        endpoints.update("desk", wrong)
    assert describe(desk)["state"]["ready"] == "READY"
    shares = [{"served_model_name": name, "traffic_percentage": 60} for name in ("tickets", "big")]
    with pytest.raises(ConfigError, match="sum to 120"):
        endpoints.update("desk", {"traffic_config": {"routes": shares}})
    with pytest.raises(ConfigError, match="cannot change while the endpoint exists"):
        endpoints.update("desk", {"smallfirst": {"server": {"port": 9}}})
    assert ask(desk).json()["smallfirst"]["route"] == "tickets"
    assert desk.config.number == 1


def changes_without_dropping_a_request(desk: EndpointFolder) -> None:
    statuses: list[int] = []
    seen: set[str] = set()
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            response = ask(desk)
            statuses.append(response.status_code)
            seen.add(response.json()["smallfirst"]["route"])

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for percent in (0, 100, 0, 100):
        endpoints.update("desk", routes(percent))
        assert ask(desk).json()["smallfirst"]["route"] == ("tickets" if percent else "big")
    over.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert seen == {"tickets", "big"}
    assert describe(desk)["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}


def follows_an_alias(desk: EndpointFolder) -> None:
    versions.promote(NAME, 2)
    assert until(lambda: ask(desk).json()["smallfirst"]["answered_by"] == "tickets@2")
    assert describe(desk)["config"]["served_entities"][0]["live_version"] == "2"
    versions.rollback(NAME)
    assert until(lambda: ask(desk).json()["smallfirst"]["answered_by"] == "tickets@1")


def is_noticed_when_killed_and_started_again(desk: EndpointFolder) -> None:
    url = describe(desk)["url"]
    os.kill(int(desk.lock.read_text()), signal.SIGKILL)
    assert until(lambda: not desk.alive)
    found = describe(desk)
    assert found["state"]["ready"] == "NOT_READY"
    assert 'update_endpoint("desk", {}) starts it again' in found["state"]["why"]
    endpoints.update("desk", {})
    assert describe(desk)["url"] == url
    assert ask(desk).json()["smallfirst"]["answered_by"] == "tickets@1"


def test_an_endpoint_that_cannot_be_had_leaves_nothing_and_one_that_is_stopped_says_so(large: Large) -> None:
    with pytest.raises(ConfigError, match="no version 9"):
        endpoints.create("gone", config(large.url, version="9"))
    assert not endpoint_folder("gone").folder.exists()
    only = {"served_entities": config(large.url)["served_entities"][1:], "smallfirst": {"server": {"drain_s": 1}}}
    alone = endpoints.create("alone", only)
    assert ask(alone).json()["choices"][0]["message"]["content"] == "refund_request"
    with alone.changing():
        assert alone.stop()
        assert not alone.stop()
    assert "smallfirst stopped" in output_tail(alone.output)
    assert endpoints.delete("alone")


def test_an_endpoint_obeys_the_key_store_of_its_state_folder_while_it_runs(large: Large) -> None:
    def status(path: str, key: str = "") -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.get(f"{describe(ringed)['url']}{path}", headers=headers, timeout=60, trust_env=False).status_code

    key_store = home_key_store()
    only = {"served_entities": config(large.url)["served_entities"][1:], "smallfirst": {"server": {"drain_s": 1}}}
    _, admin = key_store.create("ops", KeyPolicy(role="admin"))
    _, user = key_store.create("desk", KeyPolicy(requests_per_minute=1))
    ringed = endpoints.create("ringed", only)
    try:
        assert (ask(ringed).status_code, status("/metrics"), status("/health")) == (401, 401, 200)
        answers = [ask(ringed, authorization=f"Bearer {key}").status_code for key in (admin, user)]
        assert (answers, status("/metrics", admin), status("/metrics", user)) == ([200, 200], 200, 403)
        _, rotated = key_store.rotate("ops")
        _, other = key_store.create("other", KeyPolicy(models=("none",)))
        for _ in range(500):  # the endpoint reads the keys again after a second
            if status("/v1/models", admin) == 401:
                break
            time.sleep(0.02)
        assert [status("/v1/models", key) for key in (admin, rotated, user)] == [401, 200, 429]
        assert ask(ringed, authorization=f"Bearer {other}").status_code == 404
    finally:
        with key_store.database.writer.begin() as connection:
            connection.execute(KEYS.delete())
        assert endpoints.delete("ringed")


def test_an_endpoint_has_the_plugins_of_installed_packages(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[Any] = Registry("smallfirst.tests.plugins", {}, noun="serving plugin")
    installed, served = Plugin(), []
    registry.register("one", lambda context: installed if "plugged" in context.models else None)
    monkeypatch.setattr(plugins, "SERVING_PLUGINS", registry)
    monkeypatch.setattr(server, "serve", lambda models, **arguments: served.extend(arguments["plugins"]))
    server.serve_endpoint(on_disk("plugged", config(large.url)))
    assert served[1:] == [installed]
    assert endpoints.delete("plugged")


def test_an_alias_that_is_gone_is_told_as_long_as_it_is(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = on_disk("aliased", config(large.url, version="@champion"))
    live = LiveEndpoint(endpoint)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "list_versions", lambda name: [])
        for _ in range(2):
            live.watcher.poll()
            assert 'no version called "champion"' in endpoint.status.why
    live._lookup_at_s = 0.0
    live.watcher.poll()
    assert endpoint.status.why == ""
    asyncio.run(live.aclose())
    assert endpoints.delete("aliased")


@pytest.mark.parametrize("name", ["../desk", "a/b", "..", "", "x" * 129])
def test_a_name_is_never_joined_into_a_path_unchecked(name: str) -> None:
    for work in (endpoints.find, endpoints.delete, endpoint_folder):
        with pytest.raises(ConfigError, match="cannot be an endpoint's name"):
            work(name)


def test_two_do_not_change_one_endpoint_at_once_and_an_unknown_one_is_named_with_the_nearest() -> None:
    desk = on_disk("desk")
    with pytest.raises(endpoints.EndpointNotFound, match='no endpoint is called "dsk" — did you mean "desk"'):
        endpoints.find("dsk")
    with desk.changing(), pytest.raises(SmallfirstError, match="being changed by another process"):
        endpoints.update("desk", {"tags": []})
