"""What clients can do to a task that was taken over: end each their own saving, and ask only what the upstream allows.

Each test is a real proxy, as the command line starts it, in front of real upstreams on loopback.
"""

import http.client
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fixtures.cli import call
from fixtures.endpoints import completion, http_server
from fixtures.gateway import run_gateway
from fixtures.takeover import NOUNS, SYSTEM, TEACHER, LearntTask, cases
from fixtures.waiting import until

from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import StateRow
from smallfirst.traffic.task_source import TakeOver, TakeOvers

CERTAIN = [text for text, _ in cases(40, seed=5)]
UNCERTAIN = "card loan flight"
VALID = "Bearer sk-valid"
CHAT = "/v1/chat/completions"


class Upstream:
    def __init__(self, model: str) -> None:
        self.model, self.valid, self.status, self.n_asked, self.url = model, {VALID}, 200, 0, ""
        self.wrong: Callable[[str], bool] = lambda text: False

    def answer(self, path: str, headers: Mapping[str, str], sent: bytes) -> tuple[int, dict[str, Any]]:
        """Answer whoever has a valid credential; a deployment answers with its own model, whatever the body names."""
        self.n_asked += 1
        if not self.valid & {headers[name] for name in ("authorization", "x-api-key", "api-key")}:
            return 401, {}
        body = json.loads(sent)
        said = body["messages"][-1]["content"]
        text = said if isinstance(said, str) else said[0]["text"]
        rank = min if self.wrong(text) else max
        label = rank(NOUNS, key=lambda queue: sum(word in NOUNS[queue] for word in text.split()))
        named = self.model if body["model"] == "big" or "/deployments/" in path else body["model"]
        answer = completion(f"Queue: {label}", named, f"up-{self.n_asked}")
        return self.status, answer if self.status == 200 else {}


@contextmanager
def upstream(model: str = TEACHER) -> Iterator[Upstream]:
    one = Upstream(model)
    with http_server(one.answer) as address:
        one.url = f"{address}/v1"
        yield one


class Proxy:
    """A running proxy, the tenants' keys for it, and the file of what was taken over."""

    def __init__(self, port: int, keys: dict[str, str], file: TakeOvers) -> None:
        self.port, self.keys, self.file = port, keys, file
        self.local: Any = None

    @property
    def task(self) -> TakeOver:
        return self.file.get("queues")

    def ask(
        self,
        tenant: str = "",
        text: str = CERTAIN[0],
        *,
        system: str = SYSTEM,
        model: str = "big",
        credential: str | None = VALID,
        header: str = "authorization",
        path: str = CHAT,
        **more: str,
    ) -> str:
        """Return `small`, or the status of the upstream's answer."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Message: {text}"}]
        body = json.dumps({"model": model, "messages": messages, "temperature": 0})
        more |= {"x-smallfirst-key": self.keys[tenant]} if tenant else {}
        more |= {header: credential} if credential else {}
        return self.send(path, body.encode(), **more)

    def send(self, path: str, body: bytes, **headers: str) -> str:
        """Return `small`, or the status of the upstream's answer to a body as it is."""
        named = {"content-type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        line.request("POST", path, body, named)
        response = line.getresponse()
        response.read()
        line.close()
        return "small" if response.getheader("x-smallfirst-task") else str(response.status)

    def asks(self, n: int, tenant: str = "", *texts: str, **how: Any) -> Counter[str]:
        return Counter(self.ask(tenant, (texts or CERTAIN)[i % len(texts or CERTAIN)], **how) for i in range(n))

    def changed_wording(self, n: int, tenant: str = "", **how: Any) -> Counter[str]:
        return self.asks(n, tenant, system=f"{SYSTEM} Answer in German.", **how)

    def restore(self) -> None:
        """What `smallfirst take-over queues --share 1` does, until the proxy has followed."""
        at = self.file.put(self.task.moved("live", cause="person", why="taken over by a person", share=1.0)).changed_at
        until(lambda: {task.taken.changed_at for task in self.tasks()} == {at})

    def tasks(self) -> Any:
        return self.local.tasks.values()


@pytest.fixture
def started(learnt: LearntTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Start proxies over one state folder in front of these upstreams, with keys for these tenants."""
    monkeypatch.chdir(tmp_path)
    state, keys = tmp_path / ".smallfirst", dict[str, str]()
    state.mkdir(exist_ok=True)
    file = TakeOvers(state / "takeovers.json")
    file.put(learnt.takeovers.get("queues").moved("live", cause="person", why="test", share=1.0))
    made: list[Any] = []
    monkeypatch.setattr("smallfirst.traffic.gateway.app.run", lambda *given: made.append(given))
    with ExitStack() as running:

        def start(upstreams: dict[str, Any], *tenants: str, **settings: Any) -> Proxy:
            named = {
                name: {"base_url": one.url} if isinstance(one, Upstream) else one for name, one in upstreams.items()
            }
            (tmp_path / "gateway.yaml").write_text(json.dumps({"upstreams": named, **settings}))
            store = KeyStore(state / "ledger.db")
            keys.update({name: store.create(name, KeyPolicy())[1] for name in tenants})
            ran = call("proxy", "gateway.yaml", "--port", "0")
            assert ran.exit_code == 0, ran.output
            gateway, listener = made.pop()
            gateway.local._interval_s = 0.01
            proxy = Proxy(running.enter_context(run_gateway(gateway, listener)), keys, file)
            proxy.local = gateway.local
            return proxy

        yield start


@pytest.fixture
def big() -> Iterator[Upstream]:
    with upstream() as one:
        yield one


@pytest.fixture
def shared(started: Callable[..., Proxy], big: Upstream) -> Proxy:
    """Two tenants, each with a small answer already."""
    proxy = started({"default": big}, "ada", "bob")
    for tenant in ("ada", "bob"):
        assert proxy.asks(3, tenant)["small"] >= 2
    return proxy


def test_another_upstream_is_no_evidence(started: Callable[..., Proxy], big: Upstream) -> None:
    with upstream("big") as other:
        proxy = started({"default": big, "other": other}, "ada", "bob")
        assert proxy.ask("bob", UNCERTAIN, x_smallfirst_upstream="other") == "200"
        assert proxy.ask("bob", x_smallfirst_upstream="other") == "200"  # nor is it answered small
        assert other.n_asked == 2
        assert proxy.asks(10, "ada")["small"] >= 9
    assert (proxy.task.state, proxy.task.tenant_back) == ("live", None)


def test_requests_of_another_model_that_the_upstream_refuses_are_no_evidence(shared: Proxy) -> None:
    assert shared.changed_wording(36, "bob", model="other", credential="Bearer sk-wrong") == {"401": 36}
    assert shared.changed_wording(36, "bob", credential="Bearer sk-wrong") == {"401": 36}
    assert shared.changed_wording(36, "bob", model="other") == {"200": 36}
    assert shared.asks(5, "ada") == shared.asks(5, "bob") == {"small": 5}
    assert (shared.task.state, shared.task.tenant_back) == ("live", None)


def test_one_tenants_changed_prompt_ends_the_saving_of_that_tenant_alone(shared: Proxy) -> None:
    alike = [f"{text} and please answer in German" for text in CERTAIN]
    shared.asks(20, "bob", *CERTAIN[3:])  # what its cases are like otherwise
    shared.asks(36, "bob", *alike)
    assert shared.asks(5, "bob") == {"200": 5}
    assert shared.asks(5, "ada") == {"small": 5}
    back = shared.task.tenant_back
    assert (shared.task.state, back.tenant, back.cause) == ("live", "bob", "prompt")
    assert "all end with" in back.why


def test_evidence_of_two_tenants_steps_all_back_and_a_person_begins_anew(shared: Proxy, tmp_path: Path) -> None:
    shared.changed_wording(40, "bob")
    assert shared.asks(3, "bob") == {"200": 3}
    assert shared.asks(3, "ada") == {"small": 3}
    shared.restore()
    assert shared.task.tenant_back is None
    shared.changed_wording(1, "bob")  # one more after a person has restored the task
    assert shared.asks(5, "bob") == shared.asks(5, "ada") == {"small": 5}
    for tenant in ("ada", "bob"):
        shared.changed_wording(40, tenant)
    assert shared.asks(3, "ada") == shared.asks(3, "bob") == {"200": 3}
    assert (shared.task.state, shared.task.cause) == ("stepped back", "prompt")
    with closing(Ledger(tmp_path / ".smallfirst" / "ledger.db")) as ledger:
        rows = [row for row in ledger.entries(StateRow) if not row.certificate]
    assert [row.after for row in rows] == ["live without bob", "live without ada", "stepped back"]
    assert "tenant ada had stepped back" in rows[2].why


def test_where_there_is_one_tenant_its_evidence_steps_all_back(started: Callable[..., Proxy], big: Upstream) -> None:
    proxy = started({"default": big})
    assert proxy.asks(5)["small"] == 4
    proxy.changed_wording(36)
    assert proxy.asks(5) == {"200": 5}
    assert proxy.task.state == "stepped back"


def test_who_may_not_ask_the_upstream_gets_no_small_answer(started: Callable[..., Proxy], big: Upstream) -> None:
    proxy = started({"default": big})
    assert proxy.asks(5)["small"] == 4
    for header in ("authorization", "x-api-key", "api-key"):
        assert proxy.asks(3, credential="sk-wrong", header=header) == {"401": 3}
    assert proxy.asks(3, credential=None) == {"401": 3}
    assert proxy.asks(3, credential=VALID, header="x-api-key")["small"] == 2
    assert proxy.asks(3) == {"small": 3}
    big.valid = set()
    assert proxy.ask(model="other") == "401"
    assert proxy.asks(3) == {"401": 3}
    big.valid = {VALID}
    assert proxy.asks(3)["small"] == 2
    big.valid = set()
    until(lambda: proxy.ask() == "401")  # an audit was refused
    assert proxy.asks(3) == {"401": 3}


def test_a_busy_upstream_changes_nothing_and_gives_no_right(started: Callable[..., Proxy], big: Upstream) -> None:
    proxy = started({"default": big})
    for status in (429, 500, 503):
        big.status = status
        assert proxy.ask() == str(status)
    big.status = 200
    assert proxy.ask() == "200"
    for status in (429, 500, 503):
        big.status = status
        assert proxy.ask(text=UNCERTAIN) == str(status)
        assert proxy.ask() == "small"


def test_a_right_is_that_of_one_upstream_and_model(started: Callable[..., Proxy], big: Upstream) -> None:
    with upstream() as other:
        upstreams = {"default": big, "other": other}
        proxy = started(upstreams, models={"big": {"upstream": "other"}})
        other.valid = {"Bearer sk-other"}
        assert proxy.ask(model="small-talk") == "200"  # by the first upstream
        assert proxy.asks(3) == {"401": 3}
        assert proxy.asks(3, credential="Bearer sk-other")["small"] == 2


def test_the_proxys_own_provider_key_needs_no_proof(
    started: Callable[..., Proxy], big: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", VALID.removeprefix("Bearer "))
    proxy = started({"default": {"base_url": big.url, "api_key_env": "BIG_KEY"}}, "ada")
    assert proxy.asks(3, "ada", credential=None) == {"small": 3}


def test_processes_share_rights_and_their_ends(
    started: Callable[..., Proxy], big: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallfirst.traffic.gateway.access.SYNC_S", 0.0, raising=False)
    one, two = (started({"default": big}) for _ in range(2))
    assert one.ask() == "200"
    before = big.n_asked
    until(lambda: two.ask() == "small")
    assert two.asks(3) == {"small": 3}
    assert big.n_asked - before <= 20
    big.valid = set()
    assert two.ask(text=UNCERTAIN) == "401"
    until(lambda: one.ask() == "401")
    assert one.asks(3) == two.asks(3) == {"401": 3}
    assert b"sk-valid" not in b"".join(file.read_bytes() for file in Path(".smallfirst").rglob("*.*") if file.is_file())


def asked(text: Any = f"Message: {CERTAIN[0]}", **more: Any) -> str:
    """A request of the task, as JSON."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return json.dumps({"model": "big", "messages": messages, **more})


PARTS = {"type": "text", "text": f"Message: {CERTAIN[0]}"}
PLAIN = asked()
OTHER_WAYS: list[tuple[str, str, dict[str, str]]] = [
    ("/v1/deployments/other/chat/completions", PLAIN, {}),
    ("/v1/x/y/chat/completions", PLAIN, {}),
    ("/v1/%63hat/completions", PLAIN, {}),
    (f"{CHAT}?model=other", PLAIN, {}),
    (CHAT, PLAIN, {"x_smallfirst_upstream": "default"}),
    (CHAT, PLAIN, {"content_type": "text/plain"}),
    (CHAT, PLAIN, {"x_http_method_override": "DELETE"}),
    (CHAT, PLAIN.replace('"model"', '"model": "other", "model"'), {}),
    (CHAT, PLAIN.replace('"messages"', '"messages": [], "messages"'), {}),
    (CHAT, PLAIN.replace('{"role": "user"', '{"content": "a poem", "role": "user"'), {}),
    (CHAT, f"\ufeff{PLAIN}", {}),
    (CHAT, asked(temperature=float("nan")), {}),
    (CHAT, asked([PARTS | {"type": "image_url"}]), {}),
    (CHAT, asked([PARTS | {"type": "file", "file": {"file_id": "f"}}]), {}),
    (CHAT, asked([PARTS | {"image_url": {"url": "data:,"}}]), {}),
    *((CHAT, asked(temperature=value), {}) for value in (99, -1, "hot", True, [0])),
    *((CHAT, asked(n=value), {}) for value in (True, 1.0, "1", 2)),
    *((CHAT, asked(max_tokens=value), {}) for value in ("1", True, 0, -1, 2.5)),
    *((CHAT, asked(stream=value), {}) for value in ("false", 0, "")),
    *((CHAT, asked(logprobs=value), {}) for value in (0, "", [], True)),
    (CHAT, asked(Messages=[]), {}),
]


def test_only_what_is_wholly_understood_is_answered_small(started: Callable[..., Proxy], big: Upstream) -> None:
    proxy = started({"default": big})
    for path in (CHAT, "/v1/deployments/big/chat/completions"):
        found = [proxy.send(path, body.encode(), authorization=VALID) for body in (PLAIN, PLAIN, asked([PARTS]))]
        assert found == ["200", "small", "small"]
    azure = PLAIN.replace('"big"', '"gpt-4o"').encode()  # a deployment is what answers, whatever the body names
    assert proxy.send("/v1/deployments/big/chat/completions", azure, authorization=VALID) == "small"
    usual = {"temperature": 1, "n": 1, "max_tokens": 64, "stream": False, "logprobs": False, "seed": 4, "user": "a"}
    assert proxy.send(CHAT, asked(**usual).encode(), authorization=VALID) == "small"
    sent = [(way, proxy.send(way[0], way[1].encode(), authorization=VALID, **way[2])) for way in OTHER_WAYS * 2]
    assert [way for way, found in sent if found == "small"] == []


def test_what_is_given_back_ends_before_the_next_request(started: Callable[..., Proxy], big: Upstream) -> None:
    proxy = started({"default": big})
    assert proxy.asks(3)["small"] == 2
    proxy.file.put(proxy.task.moved("shadow", cause="person", why="given back by a person", share=0.0))
    until(lambda: {task.taken.state for task in proxy.tasks()} == {"shadow"})  # nobody asks meanwhile
    assert proxy.ask() == "200"
