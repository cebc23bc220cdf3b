"""Plugins: routes by role, what a failing one breaks, and those that `smallfirst serve` finds."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.extensions import Registry
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.models.protocol import Completion, Request
from smallfirst.serving import plugins
from smallfirst.serving.plugins import Plugin, PluginContext, PluginGroup, PluginRequest, PluginResponse, PluginRoute


async def greet(request: PluginRequest) -> PluginResponse:
    return {"hello": request.path_params.get("name", ""), "query": dict(request.query)}


class Greeting(Plugin):
    """One route for every key, one for administrators."""

    routes = (PluginRoute("GET", "/hello/{name}", greet, "user"), PluginRoute("GET", "/secret", greet))


def test_a_route_is_open_to_its_role_only(start: Any, label: Any, tmp_path: Path) -> None:
    key_store = KeyStore(tmp_path / "keys.db")
    keys = {role: key_store.create(role, KeyPolicy(role=role))[1] for role in ("user", "admin")}  # type: ignore[arg-type]
    server = start(key_store=key_store, plugins=[Greeting()], m=label)

    def get(path: str, role: str) -> httpx.Response:
        return httpx.get(f"{server.url}{path}", headers={"authorization": f"Bearer {keys[role]}"})

    assert get("/hello/ada?a=1", "user").json() == {"hello": "ada", "query": {"a": "1"}}
    assert [get("/secret", role).status_code for role in ("user", "admin")] == [403, 200]
    assert httpx.get(f"{server.url}/hello/ada").status_code == 401


def test_a_plugin_that_fails_keeps_no_answer_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Plugin):
        def answered(self, id: str, request: Request, completion: Completion) -> None:
            raise RuntimeError("broken")

    class Noting(Plugin):
        seen: list[str] = []

        def answered(self, id: str, request: Request, completion: Completion) -> None:
            self.seen.append(id)

    answer = Completion(text="a", answered_by="m", latency_ms=1.0, cost_usd=0.0)
    PluginGroup([Broken(), Noting()]).answered("chatcmpl-1", Request.ask("q"), answer)
    assert Noting.seen == ["chatcmpl-1"]
    assert "the plugin Broken failed" in caplog.text


def test_a_plugin_is_told_whether_it_is_enabled_and_may_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, PluginContext] = {}

    def create(name: str) -> Any:
        def factory(context: PluginContext) -> Plugin | None:
            given[name] = context
            return Greeting() if context.enabled else None

        return factory

    registry: Registry[Any] = Registry("smallfirst.tests.plugins", {}, noun="serving plugin")
    for name in ("one", "two"):
        registry.register(name, create(name))
    monkeypatch.setattr(plugins, "SERVING_PLUGINS", registry)
    found = plugins.installed_plugins({}, {"one"}, ["m=folder"])
    assert [type(plugin) for plugin in found] == [Greeting]
    told = [(context.enabled, context.bases) for context in given.values()]
    assert told == [(True, ("m=folder",)), (False, ("m=folder",))]
    with pytest.raises(ConfigError, match='unknown serving plugin "three"'):
        plugins.installed_plugins({}, {"three"})
