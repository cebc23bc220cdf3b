"""Replicas on Ray Serve: what its proxies pass on, what a kill costs, and how they stop."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from fixtures.ray_cluster import RayCluster
from fixtures.replica_service import service_of
from fixtures.waiting import beside, until, until_async
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import ledger_at
from smallfirst.ledger.ledger import Ledger
from smallfirst.serving.replicas import (
    ENVIRONMENT,
    HEALTH_PATH,
    Edge,
    ReplicaApp,
    check_ledger,
    open_replica,
    serve_replicas,
)
from smallfirst.serving.settings import ServeSettings

PATH = "/v1/chat/completions"
SERVE = """
import sys
from smallfirst.serving.replicas import serve_replicas
from smallfirst.serving.settings import ServeSettings
settings = ServeSettings(port=0, drain_s=5)
serve_replicas([sys.argv[1], "5"], 2, settings=settings, service="fixtures.replica_service:service_of")
"""


def asking(seconds: float, *, stream: bool = False) -> dict[str, Any]:
    return {"model": "slow", "stream": stream, "messages": [{"role": "user", "content": str(seconds)}]}


def behind(app: ASGIApp) -> TestClient:
    """A client of a proxy of Serve, which has `app` as its replicas."""
    return TestClient(Edge(app), raise_server_exceptions=False)


def answering(status: int, *ids: str) -> ASGIApp:
    """What comes from a proxy of Serve: the application's answer has two request ids, Serve's own one or none."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = PlainTextResponse("it", status_code=status)
        response.raw_headers += [(b"x-request-id", id.encode()) for id in ids]
        if status:
            await response(scope, receive, send)

    return app


def test_the_applications_answer_keeps_its_own_request_id() -> None:
    answer = behind(answering(418, "chatcmpl-1", "of-serve")).get("/v1/models")
    assert (answer.status_code, answer.text) == (418, "it")
    assert answer.headers.get_list("x-request-id") == ["chatcmpl-1"]


RETRIED, LOST = (503, "no_replica", "2", None), (502, "answer_lost", None, "false")


@pytest.mark.parametrize(("status", "told"), [(404, RETRIED), (503, RETRIED), (500, LOST), (0, LOST)])
def test_only_a_request_that_reached_no_replica_is_to_be_tried_again(status: int, told: tuple[Any, ...]) -> None:
    answer = behind(answering(status, "of-serve")).post(PATH, json=asking(0))
    headers = [answer.headers.get(name) for name in ("retry-after", "x-should-retry")]
    assert (answer.status_code, answer.json()["error"]["code"], *headers) == told
    assert answer.headers["x-request-id"].startswith("req-")


def test_of_serves_own_paths_only_its_health_is_answered() -> None:
    client = behind(answering(200, "of-serve"))
    assert client.get(HEALTH_PATH).text == "it"
    assert client.get("/-/routes").json()["error"]["code"] == "not_found"


def test_a_client_cannot_steer_serve_by_headers() -> None:
    async def echo(request: Request) -> PlainTextResponse:
        answer = PlainTextResponse(json.dumps(sorted(request.headers)))
        answer.raw_headers += [(b"x-request-id", b"1"), (b"x-request-id", b"2")]
        return answer

    client = behind(Starlette(routes=[Route("/", echo)]))
    plain = client.get("/").json()
    sent = {
        "x-request-id": "mine",
        "x-request-timeout-seconds": "0.001",
        "x-request-disconnect-disabled": "?1",
        "serve_multiplexed_model_id": "m",
        "x-session-id": "s",
    }
    assert client.get("/", headers=sent).json() == plain


async def test_a_replica_stops_when_its_requests_are_done_and_cuts_off_the_rest(tmp_path: Path) -> None:
    app = ReplicaApp(service_of([str(tmp_path / "ledger.db"), "1"]))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        quick, slow = (asyncio.create_task(client.post(PATH, json=asking(s))) for s in (0.2, 60))
        await until_async(lambda: len(app._running) == 2)
        assert await app.stop() == 1
        assert (await quick).status_code == 200
        assert (await slow).json()["error"]["code"] == "stopping"
        assert (await client.post(PATH, json=asking(0))).json()["error"]["code"] == "stopping"


def test_a_replica_closes_models_and_ledger_with_its_lifespan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = open_replica(json.dumps(["fixtures.replica_service:service_of", str(tmp_path), ["ledger.db", "1"]]))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post(PATH, json=asking(0)).status_code == 200
    assert (tmp_path / f"closed-{os.getpid()}").exists()


def test_a_replica_on_a_machine_without_the_tasks_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .* on .*\n  next: mount the tasks there on every node"):
        open_replica(json.dumps(["fixtures.replica_service:service_of", str(tmp_path / "none"), []]))


def test_replicas_on_other_addresses_need_a_key_as_well() -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        serve_replicas([], 2, settings=ServeSettings(host="0.0.0.0"))


def test_replicas_on_several_machines_need_a_ledger_that_all_reach() -> None:
    check_ledger(1)
    with pytest.raises(ConfigError, match="on 2 machines need one ledger"):
        check_ledger(2)
    with ledger_at("postgresql://sf@db/sf"):
        check_ledger(2)


class Serving(NamedTuple):
    url: str
    folder: Path
    process: subprocess.Popen[str]

    def ask(self, seconds: float) -> httpx.Response:
        return httpx.post(f"{self.url}/chat/completions", json=asking(seconds), timeout=60)

    def begun(self) -> Counter[int]:
        return Counter(int(path.name.split("-")[1]) for path in self.folder.glob("began-*"))

    def pids(self, at_least: int = 2) -> set[int]:
        """The processes of replicas that answer, once there are so many."""
        found: set[int] = set()
        end = time.monotonic() + 120
        while len(found) < at_least and time.monotonic() < end:
            if (answer := self.ask(0)).status_code == 200:
                found.add(int(answer.json()["choices"][0]["message"]["content"].rsplit(" ", 1)[1]))
        return found


@pytest.fixture
def serving(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """Two replicas of the slow model, started as `smallfirst serve --replicas 2` does."""
    tests = Path(__file__).parents[1]
    for name, value in {**ENVIRONMENT, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}.items():
        monkeypatch.setenv(name, value)
    cluster: RayCluster = request.getfixturevalue("ray_cluster")
    environment = {**os.environ, **cluster.environment}
    command = [sys.executable, "-c", SERVE, str(tmp_path / "ledger.db")]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    started = process.stdout.readline()
    assert started.startswith("smallfirst serves with 2 replicas at http://127.0.0.1:")
    yield Serving(started.rsplit(" ", 1)[1].strip(), tmp_path, process)
    process.kill()


def test_two_replicas_answer_as_one_server_lose_what_is_killed_and_stop_when_they_are_told(serving: Serving) -> None:
    answers_streams_and_errors_are_those_of_one_server(serving)
    a_kill_costs_the_requests_of_that_replica_alone(serving)
    told_to_stop_they_finish_their_requests_and_close_their_models(serving)


def answers_streams_and_errors_are_those_of_one_server(serving: Serving) -> None:
    client = openai.OpenAI(base_url=serving.url, api_key="none", max_retries=0)
    messages: Any = asking(0.1)["messages"]
    answer = client.chat.completions.with_raw_response.create(model="slow", messages=messages)
    assert answer.headers.get_list("x-request-id") == [answer.parse().id]
    words = [
        part.choices[0].delta.content
        for part in client.chat.completions.create(model="slow", messages=messages, stream=True)
        if part.choices
    ]
    assert [word for word in words if word][:10] == [f"{word} " for word in range(10)]
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="none", messages=messages)
    assert caught.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["slow"]


def a_kill_costs_the_requests_of_that_replica_alone(serving: Serving) -> None:
    killed, other = serving.pids()
    answers: list[httpx.Response] = []
    before = serving.begun()
    with beside(lambda: answers.append(serving.ask(5)), *[()] * 6):
        until(lambda: {killed, other} <= set(serving.begun() - before))
        os.kill(killed, signal.SIGKILL)
    assert {answer.status_code for answer in answers} == {200, 502}
    for answer in answers:
        if answer.status_code == 502:
            assert answer.json()["error"]["code"] == "answer_lost"
        else:
            assert answer.json()["choices"][0]["message"]["content"].endswith(str(other))
    assert serving.ask(0).status_code == 200
    ledger = Ledger(serving.folder / "ledger.db")
    rows = {row.id for row in ledger.rows()}
    ledger.close()
    assert {answer.json()["id"] for answer in answers if answer.status_code == 200} <= rows


def told_to_stop_they_finish_their_requests_and_close_their_models(serving: Serving) -> None:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(serving.ask(2)))
    before = serving.begun()
    thread.start()
    until(lambda: serving.begun() - before)
    serving.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers[0].status_code == 200
    out, _ = serving.process.communicate(timeout=120)
    assert serving.process.returncode == 0
    assert out.endswith("smallfirst stopped\n")
    assert int(answers[0].json()["choices"][0]["message"]["content"].rsplit(" ", 1)[1]) in {
        int(path.name.removeprefix("closed-")) for path in serving.folder.glob("closed-*")
    }
