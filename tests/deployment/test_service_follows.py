"""A running server follows `@champion`: promotion and rollback from outside, without a dropped request."""

import asyncio
import json
import logging
import threading
import time
from functools import partial
from itertools import pairwise

import httpx
import pytest
from fixtures.waiting import until

from smallfirst.base.errors import ModelError
from smallfirst.deployment import service
from smallfirst.deployment.service import DeployedTasks, deploy
from smallfirst.interfaces.cli.improve import explanation, in_words
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import LedgerRow, StateRow
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.registry import versions

TEXT = "where is my card"


def answer(model: Model, text: str = TEXT) -> Completion:
    return asyncio.run(model.complete(Request.ask(text)))


def states(ledger: Ledger) -> list[str]:
    return [row.why for row in ledger.entries(StateRow, task="toy")]


def start(desk, ledger: Ledger, *turns: int) -> DeployedTasks:
    """Versions 1, 2, …, the first one champion, served in this process without a thread."""
    for turn in turns:
        desk.register(turn)
    versions.promote(versions.resolve("main.desk.toy/1").name, 1)
    return deploy([desk.file], ledger)


def test_a_promotion_and_a_rollback_are_followed(desk, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LINGER_S", 0.0)
    deployed = start(desk, ledger, 0, 1)
    router, small = deployed.models["toy"], deployed.models["toy-small"]
    first = answer(small)
    assert (first.answered_by, deployed.watcher.poll()) == ("toy-small@1", [])
    assert list(deployed.models) == ["toy", "toy-small"]
    left = deployed.models.active["toy"].models["toy-small"]

    versions.promote("main.desk.toy", 2)
    assert deployed.watcher.poll() == ["toy"]
    second = answer(small)
    assert second.answered_by == "toy-small@2"
    labels = desk.task.labels
    assert labels.index(second.text) == (labels.index(first.text) - 1) % 4  # the codes were turned by one place
    kept = answer(router)
    assert (kept.text, kept.answered_by, kept.route.trail[-1].model) == (second.text, "toy-small@2", "toy-small@2")
    assert deployed.by_task["toy"].certificate == deployed.models.active["toy"].models["toy"].certificate  # type: ignore[attr-defined]

    versions.rollback("main.desk.toy")
    assert deployed.watcher.poll() == ["toy"]
    assert answer(small).text == first.text
    assert deployed.models.retired == []
    with pytest.raises(ModelError, match="toy-small@1 is closed"):
        answer(left)
    assert states(ledger)[-1] == ("the registry's aliases moved from version 2 to version 1, which answers")
    asyncio.run(deployed.aclose())
    assert list(deployed.models) == []


def test_a_damaged_version_is_reported_once_and_the_one_before_answers(
    desk, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    deployed = start(desk, ledger, 0, 1)
    weights = versions.resolve("main.desk.toy/2").folder / "model.safetensors"
    whole = weights.read_bytes()
    versions.promote("main.desk.toy", 2)
    weights.write_bytes(whole[:-1])
    with caplog.at_level(logging.WARNING, "smallfirst.serving"):
        assert [deployed.watcher.poll(), deployed.watcher.poll()] == [[], []]
        assert deployed.watcher._failures["toy"].backoff_s == 5.0  # the second round left it alone
        deployed.watcher._failures["toy"].retry_at_s = 0.0
        assert deployed.watcher.poll() == []
        assert deployed.watcher._failures["toy"].backoff_s == 10.0
    said = [m for m in caplog.messages if "is not served" in m]
    assert len(said) == 1
    assert "version 2 is not served: main.desk.toy/2 was changed: model.safetensors" in said[0]
    assert said[0].endswith("; version 1 stays")
    assert answer(deployed.models["toy"]).answered_by == "toy-small@1"
    assert states(ledger)[-1] in said[0]
    weights.write_bytes(whole)
    deployed.watcher._failures["toy"].retry_at_s = 0.0
    assert deployed.watcher.poll() == ["toy"]
    assert answer(deployed.models["toy"]).answered_by == "toy-small@2"
    asyncio.run(deployed.aclose())


def test_a_version_without_a_certificate_is_taken_once_it_has_one(desk, ledger: Ledger) -> None:
    deployed = start(desk, ledger, 0)
    desk.register(1, certified=False)
    versions.promote("main.desk.toy", 2)
    assert [deployed.watcher.poll(), deployed.watcher.poll()] == [[], []]
    assert states(ledger)[-1] == "version 2 is not served: it has no certificate yet; version 1 stays"
    desk.certify(2)
    assert deployed.watcher.poll() == ["toy"]
    asyncio.run(deployed.aclose())


def test_a_version_that_loads_but_does_not_answer_is_not_taken(desk, ledger: Ledger) -> None:
    deployed = start(desk, ledger, 0)
    desk.register(1, label_tokens=(10**6,) * 4)  # beyond the vocabulary
    versions.promote("main.desk.toy", 2)
    before = threading.active_count()
    assert deployed.watcher.poll() == []
    assert "version 2 is not served: toy-small@2 could not answer" in states(ledger)[-1]
    assert answer(deployed.models["toy"]).answered_by == "toy-small@1"
    assert threading.active_count() == before  # what was loaded is freed
    asyncio.run(deployed.aclose())


def test_aliases_that_cannot_be_looked_up_change_nothing(
    desk, ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = start(desk, ledger, 0)
    n_states = len(states(ledger))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://mlflow")
    with caplog.at_level(logging.WARNING, "smallfirst.serving"):
        assert [deployed.watcher.poll(), deployed.watcher.poll()] == [[], []]
    assert len([m for m in caplog.messages if "the aliases cannot be looked up" in m]) == 1
    assert len(states(ledger)) == n_states
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert deployed.watcher.poll() == []
    assert answer(deployed.models["toy"]).answered_by == "toy-small@1"
    asyncio.run(deployed.aclose())


def test_an_audit_counts_for_the_version_that_gave_the_answer(desk, ledger: Ledger) -> None:
    deployed = start(desk, ledger, 0, 1)
    old = deployed.by_task["toy"]
    versions.promote("main.desk.toy", 2)

    async def finish_after_the_change() -> None:
        late = await deployed.models["toy"].complete(Request.ask(TEXT))
        assert await asyncio.to_thread(deployed.watcher.poll) == ["toy"]
        new = deployed.by_task["toy"]
        assert new is not old
        audited: dict[str, list[str]] = {"old": [], "new": []}
        for which, router in (("old", old), ("new", new)):
            router.answered = lambda id, _, answer, to=audited[which]: to.extend([id] * answer.route.audited)
        drawn = late.model_copy(update={"route": late.route and late.route.model_copy(update={"audited": True})})
        deployed.answered("chatcmpl-1", Request.ask(TEXT), drawn)
        assert audited == {"old": ["chatcmpl-1"], "new": []}
        fresh = await deployed.models["toy"].complete(Request.ask(TEXT))
        drawn = fresh.model_copy(update={"route": fresh.route and fresh.route.model_copy(update={"audited": True})})
        deployed.answered("chatcmpl-2", Request.ask(TEXT), drawn)
        assert audited == {"old": ["chatcmpl-1"], "new": ["chatcmpl-2"]}
        await deployed.aclose()

    asyncio.run(finish_after_the_change())


class Client(threading.Thread):
    """Asks without a pause until it is stopped, over one connection, and keeps what came back."""

    def __init__(self, url: str, *, stream: bool) -> None:
        super().__init__()
        self.url, self.stream, self.stopped = url, stream, threading.Event()
        self.answers: list[tuple[float, int, str]] = []

    def run(self) -> None:
        body = {"model": "toy", "messages": [{"role": "user", "content": TEXT}], "stream": self.stream}
        with httpx.Client(timeout=30) as client:
            while not self.stopped.is_set():
                reply = client.post(f"{self.url}/chat/completions", json=body)
                self.answers.append((time.monotonic(), reply.status_code, _answered_by(reply)))


def _answered_by(reply: httpx.Response) -> str:
    if reply.status_code != 200:
        return reply.text
    if reply.headers["content-type"].startswith("application/json"):
        return str(reply.json()["smallfirst"]["answered_by"])
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return str(next(json.loads(e)["smallfirst"]["answered_by"] for e in events[:-1] if "smallfirst" in json.loads(e)))


def test_a_running_server_follows_without_a_dropped_request(desk, ledger: Ledger, run_server) -> None:
    for turn in (0, 1):
        desk.register(turn)
    versions.promote("main.desk.toy", 1)
    deployed = deploy([desk.file], ledger, poll_interval_s=0.25)
    with run_server(deployed.models, ledger, plugins=[deployed]) as server:
        clients = [Client(f"{server.url}/v1", stream=stream) for stream in (False, True, False)]
        follow_and_stop(clients)
    asyncio.run(deployed.aclose())
    answers = {(status, who) for client in clients for _, status, who in client.answers}
    assert answers == {(200, "toy-small@1"), (200, "toy-small@2")}
    for client in clients:  # each client sees every change once: no answer of a version that was left
        seen = [who for _, _, who in client.answers]
        assert sum(a != b for a, b in pairwise(seen)) == 2
    _is_explained(ledger, sum(len(c.answers) for c in clients))


def everyone_got(clients: list[Client], who: str, after_s: float) -> bool:
    return all(any(at > after_s and by == who for at, _, by in client.answers[-50:]) for client in clients)


def follow_and_stop(clients: list[Client]) -> None:
    for client in clients:
        client.start()
    try:
        moved = [time.monotonic()]
        for move, expected in (
            (lambda: versions.promote("main.desk.toy", 2), "toy-small@2"),
            (lambda: versions.rollback("main.desk.toy"), "toy-small@1"),
        ):
            other = "toy-small@1" if expected.endswith("2") else "toy-small@2"
            until(partial(everyone_got, clients, other, moved[-1]))
            move()
            moved.append(time.monotonic())
            until(partial(everyone_got, clients, expected, moved[-1]))
    finally:
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join()


def _is_explained(ledger: Ledger, n: int) -> None:
    """Every answer is in the ledger with its version, and so is each change."""
    rows = ledger.entries(LedgerRow)
    assert len(rows) == n
    second = next(row for row in rows if row.answered_by == "toy-small@2")
    told = "\n".join(in_words(explanation(ledger, second.id)))
    assert "by toy-small@2 (stage small)" in told
    assert [why for why in states(ledger) if "moved" in why] == [
        "the registry's aliases moved from version 1 to version 2, which answers",
        "the registry's aliases moved from version 2 to version 1, which answers",
    ]


def test_the_challengers_alias_is_followed_too(desk, ledger: Ledger) -> None:
    settings = json.loads(desk.path.read_text())
    split = {"kind": "split", "to": "challenger", "share": 1.0}
    desk.path.write_text(json.dumps({**settings, "routing": {"domain": "off", "policies": [split]}}))
    for turn in (0, 1, 2):
        desk.register(turn)
    versions.promote("main.desk.toy", 1)
    with pytest.raises(versions.RegistryError, match="leads to the challenger, and no version"):
        deploy([desk.file], ledger)
    point(2)
    deployed = deploy([desk.file], ledger)
    assert answer(deployed.models["toy"]).answered_by == "toy-challenger@2"
    point(3)
    assert deployed.watcher.poll() == ["toy"]
    assert answer(deployed.models["toy"]).answered_by == "toy-challenger@3"
    point(None)
    assert deployed.watcher.poll() == ["toy"]
    assert answer(deployed.models["toy"]).answered_by == "toy-small@1"
    assert states(ledger)[-1] == (
        "the registry's aliases moved from version 1, challenger 3 to version 1, which answers"
    )
    asyncio.run(deployed.aclose())


def point(version: int | None) -> None:
    from smallfirst.registry.runs import client

    if version is None:
        client().delete_registered_model_alias("main.desk.toy", "challenger")
    else:
        client().set_registered_model_alias("main.desk.toy", "challenger", str(version))
