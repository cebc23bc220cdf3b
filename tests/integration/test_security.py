"""The checklist of docs/security.md, a test for each line that one server can show; the page names the others."""

import importlib.metadata
import json
import logging
import os
import re
import socket
import threading
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.endpoints import large_server
from fixtures.waiting import until
from starlette.routing import Route

from smallfirst.deployment.dashboard.plugin import Dashboard
from smallfirst.deployment.service import MonitoringRoutes
from smallfirst.interfaces.mlflow_deployments import endpoints
from smallfirst.interfaces.openai_finetuning.plugin import create_plugin
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.pricing import PriceBook, TokenPrice
from smallfirst.models.protocol import Completion, Request
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.model import EndpointModel
from smallfirst.serving.app import build_app
from smallfirst.serving.plugins import PluginContext
from smallfirst.serving.settings import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
BODY: dict[str, Any] = {"model": "m", "messages": HELLO}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def key_store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.db")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def chat(server: Any, key: str = "none", **values: Any) -> httpx.Response:
    headers = values.pop("headers", {})
    return httpx.post(
        f"{server.url}/v1/chat/completions",
        content=json.dumps({**BODY, **values}).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {key}", **headers},
        timeout=20,
    )


def test_06_requests_leave_nothing_behind(start, label) -> None:
    server = start(m=label)
    sizes = []
    for _ in range(2):
        for n in range(60):
            chat(server, model="m" if n % 2 else "../none")
        until(lambda: not server.n_connections)
        sizes.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert sizes[1][0] <= sizes[0][0] + 1
    assert sizes[1][1] <= sizes[0][1]


def test_09_every_route_but_two_needs_a_key_and_the_administrators_one_of_theirs(start, key_store, label) -> None:
    _, user = key_store.create("user", KeyPolicy())
    _, admin = key_store.create("admin", KeyPolicy(role="admin"))
    server = start(key_store=key_store, m=label)
    for path in ("/metrics", "/v1/models", "/nowhere", "/health/", "//health", "/health/../metrics", "/health%2f"):
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            assert httpx.request(method, server.url + path).status_code == 401, (method, path)
    for path, status in (("/metrics", 200), ("/v1/queue", 404), ("/v1/routers/x", 404)):  # there are no Routers here
        as_user = httpx.get(server.url + path, headers={"authorization": f"Bearer {user}"})
        as_admin = httpx.get(server.url + path, headers={"authorization": f"Bearer {admin}"})
        assert (as_user.status_code, as_user.json()["error"]["code"]) == (403, "admin_only")
        assert as_admin.status_code == status
    rewritten = {"x-original-url": "/health", "x-rewrite-url": "/health", "x-forwarded-prefix": "/health"}
    assert httpx.get(f"{server.url}/metrics", headers=rewritten).status_code == 401


USER = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/feedback", "/v1/files", "/invocations"}
USER |= {"/v1/fine_tuning/jobs", "/endpoints", "/serving-endpoints", "/v1/dashboard/session", "/v1/dashboard/answers"}
JUDGE = {"/v1/queue"}
ADMIN = {"/metrics", "/api/2.0/serving-endpoints", "/v1/routers", "/v1/dashboard/watch"}


def test_09_every_route_of_a_server_with_all_plugins_has_its_roles(
    start, key_store, label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    with closing(Ledger(tmp_path / "routes.db")) as ledger:
        made = [make(PluginContext({"m": label}, enabled=True)) for make in (endpoints.create_plugin, create_plugin)]
        plugins = [*filter(None, made), MonitoringRoutes([], ledger), Dashboard({"m": label}, ledger, {})]
        app = build_app({"m": label}, ledger=ledger, settings=ServeSettings(), plugins=plugins)
        policies = {role: KeyPolicy(role=role) for role in ("user", "judge", "admin")}
        policies["limited"] = KeyPolicy(models=("other",))
        keys = {name: key_store.create(name, policy)[1] for name, policy in policies.items()}
        server = start(key_store=key_store, plugins=plugins, m=label)
        for route in app.routes:
            assert isinstance(route, Route)
            above = route.path.partition("/{")[0]
            public = above in ("/health", "/ready", "/") or above.startswith("/dashboard/")
            allowed = {"admin"} | ({"judge"} if above in USER | JUDGE else set())
            allowed |= {"user", "limited"} if above in USER else set()
            assert public or above in USER | JUDGE | ADMIN, route.path
            for method in (route.methods or set()) - {"HEAD"}:
                url = server.url + re.sub(r"{[^}]*}", "x", route.path)
                found = {
                    name: httpx.request(method, url, headers={"authorization": f"Bearer {key}"}).status_code
                    for name, key in [("nobody", "none"), *keys.items()]
                }
                assert {name for name, status in found.items() if status not in (401, 403)} == (
                    set(found) if public else allowed
                ), (method, route.path)
                assert found["nobody"] == (found["admin"] if public else 401)


def test_09_hosts_that_are_not_named_are_refused_with_a_key_as_well(start, key_store, label) -> None:
    _, key = key_store.create("desk", KeyPolicy())
    server = start(settings=ServeSettings(allowed_hosts=("models.example",)), key_store=key_store, m=label)
    hosts = {"models.example": 200, "MODELS.example:8443": 200, "evil.example": 403, "models.example@evil.example": 403}
    for host, status in hosts.items():
        headers = {"host": host, "authorization": f"Bearer {key}"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status
    assert httpx.get(f"{server.url}/health", headers={"host": "10.0.0.7:8000"}).status_code == 200


def test_09_a_key_sees_and_asks_only_its_models(start, key_store, label, echo) -> None:
    _, narrow = key_store.create("narrow", KeyPolicy(models=("small",)))
    server = start(key_store=key_store, small=label, secret=echo)
    client = server.client(narrow)
    assert [model.id for model in client.models.list()] == ["small"]
    assert chat(server, narrow, model="small").status_code == 200
    refused = chat(server, narrow, model="secret")
    assert refused.status_code == 404
    missing = chat(server, narrow, model="no-such")
    assert refused.json()["error"]["code"] == missing.json()["error"]["code"] == "model_not_found"
    assert "Served: small." in refused.json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/models/secret", headers={"authorization": f"Bearer {narrow}"}).status_code == 404


def test_10_nothing_is_fetched(start, label) -> None:
    server = start(m=label)
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        schema = {"type": "object", "properties": {"a": {"$ref": url}}, "$schema": url, "$id": url}
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        statuses = [
            chat(server, messages=image).status_code,
            chat(server, response_format=form).status_code,
            chat(server, model=url).status_code,
            chat(server, base_url=url).status_code,
            chat(server, messages=[{"role": "user", "content": url}]).status_code,
        ]
        assert statuses == [400, 400, 404, 400, 200]
        trap.settimeout(0.2)
        with pytest.raises(TimeoutError):
            trap.accept()


def test_11_no_code_comes_with_data() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "smallfirst").rglob("*.py")}
    assert len(sources) > 100
    for path, text in sources.items():
        for wrong in ("import pickle", "import cloudpickle", "import marshal", "import shelve"):
            assert f"\n{wrong}" not in text.replace("    ", ""), path
        for wrong in ("trust_remote_code=True", "weights_only=False", "yaml.load(", "joblib.load("):
            assert wrong not in text, path


def test_11_a_template_cannot_leave_its_sandbox(tiny_folder: Path) -> None:
    import jinja2.exceptions
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(jinja2.exceptions.SecurityError):
        tokenizer.apply_chat_template(HELLO, tokenize=False)


@pytest.mark.parametrize(
    "name", ["../keys.json", "/etc/passwd", "m\u0000", "m\r\nX: 1", "a" * 256, "%2e%2e", "M", " m"]
)
def test_12_names_are_looked_up_and_nothing_else(start, label, log: pytest.LogCaptureFixture, name: str) -> None:
    server = start(m=label)
    answer = chat(server, model=name)
    assert answer.status_code == 404
    assert "x" not in answer.headers
    assert all("\r" not in value and "\n" not in value for value in answer.headers.values())
    (row,) = server.ledger.rows()
    assert row.served_name == name[:128]
    assert "\nX: 1" not in log.text


def test_13_neither_bodies_nor_keys_nor_forged_lines_come_into_the_log_or_the_ledger(
    start, key_store, label, failing, log: pytest.LogCaptureFixture
) -> None:
    _, secret = key_store.create("desk", KeyPolicy())
    server = start(key_store=key_store, m=label, broken=failing(RuntimeError("kaboom")))
    said = "xyzzy-body\r\nERROR root: forged"
    cookie = {"cookie": "session=xyzzy-cookie", "user-agent": "xyzzy-agent"}
    for model in ("m", "broken", "none\r\nERROR root: forged"):
        messages = [{"role": "user", "content": said, "name": "a"}]
        answer = chat(server, secret, model=model, messages=messages, headers=cookie, user=said)
        assert "Traceback" not in answer.text
        assert "kaboom" not in answer.text
    chat(server, secret + "x", headers=cookie)
    assert "kaboom" in log.text  # the log is really read
    assert "\nERROR root: forged" not in log.text
    ledger = b"".join(path.read_bytes() for path in server.ledger.path.parent.glob("ledger.sqlite*"))
    for word in ("xyzzy", secret[16:]):
        assert word not in log.text
        assert word.encode() not in ledger


def test_13_nothing_of_a_client_but_its_messages_goes_upstream(start, key_store) -> None:
    _, secret = key_store.create("desk", KeyPolicy())
    book = PriceBook(tokens={"big": TokenPrice(input_usd_per_mtok=1, output_usd_per_mtok=1)})
    mine = {"cookie": "a=b", "x-forwarded-for": "1.2.3.4", "x-custom": "c", "connection": "close, x-custom", "te": "x"}
    with large_server("hi") as large:
        config = EndpointConfig(base_url=large.url, model="big")
        server = start(key_store=key_store, m=EndpointModel(config, book, api_key="sk-operators-own"))
        assert chat(server, secret, headers=mine).status_code == 200
    (headers,) = large.headers
    assert headers["authorization"] == "Bearer sk-operators-own"
    assert not {"cookie", "x-forwarded-for", "x-custom", "te"} & set(headers)
    assert secret not in json.dumps(headers)


def test_14_a_model_is_told_whose_request_it_is(start, key_store, echo) -> None:
    seen: list[str] = []

    class Listening(type(echo)):
        async def complete(self, request: Request) -> Completion:
            seen.append(request.tenant)
            return await super().complete(request)

    keys, secrets = zip(*(key_store.create(name, KeyPolicy()) for name in ("one", "two")), strict=True)
    server = start(key_store=key_store, m=Listening())
    for key in secrets:
        assert chat(server, key).status_code == 200
    assert seen == [key.owner for key in keys]


def test_15_versions_with_known_holes_are_not_installed() -> None:
    def numbers(name: str) -> tuple[int, ...]:
        return tuple(int(part) for part in importlib.metadata.version(name).split(".")[:3])

    assert numbers("starlette") >= (1, 0, 1)  # CVE-2026-48710
    assert numbers("h11") >= (0, 16, 0)  # CVE-2025-43859


def test_16_no_dependency_brings_a_file_that_runs_when_python_starts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [need for needs in project["optional-dependencies"].values() for need in needs]
    waiting, seen = [_package(need) for need in [*project["dependencies"], *extras]], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name == "smallfirst":
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or an extra that is not installed
        if name != "setuptools":
            assert not [file for file in found.files or () if str(file).endswith(".pth")], name
        waiting += [_package(need) for need in found.requires or () if "extra ==" not in need]
    assert {"starlette", "uvicorn", "pydantic"} <= seen


def _package(requirement: str) -> str:
    """The name in a requirement such as `uvicorn[standard]>=0.30; python_version>"3.10"`."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
