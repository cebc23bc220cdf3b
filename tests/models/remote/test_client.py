"""The way to an endpoint over real sockets: broken lines, dead processes, retries, the breaker."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pytest
from fixtures.waiting import until_async

from smallfirst.base.errors import AnswerLost, BadAnswer, ModelError, RateLimited, Unavailable
from smallfirst.models.pricing import PriceBook, TokenPrice
from smallfirst.models.protocol import Bill, Capability, Completion, Request
from smallfirst.models.remote.client import MAX_FAILURES, CircuitBreaker, CircuitOpenError
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.model import EndpointModel

BOOK = PriceBook(tokens={"big": TokenPrice(input_usd_per_mtok=2, output_usd_per_mtok=10)})
BODY = json.dumps(
    {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
).encode()
Deed = Callable[[socket.socket], bool]


def reply(status: str, body: bytes = b"", *headers: str) -> Deed:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]

    def do(line: socket.socket) -> bool:
        line.sendall("\r\n".join(lines).encode() + body)
        return True

    return do


def say_and_hang_up(content: bytes) -> Deed:
    def do(line: socket.socket) -> bool:
        line.sendall(content)
        return False

    return do


def say_nothing(line: socket.socket) -> bool:
    line.recv(1)
    return False


OK, BUSY = reply("200 OK", BODY), reply("503 Service Unavailable", b"busy", "Retry-After: 1")
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(value: Any) -> bytes:
    data = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def piece(text: str, finish: str | None = None) -> bytes:
    return chunk({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


class Server:
    """Does its deeds in turn, one a request, and the last one for ever."""

    def __init__(self) -> None:
        self.deeds: list[Deed] = [OK]
        self.heads: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.waits_s: list[float] = []
        self.n_lines = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def model(self, book: PriceBook = BOOK, **settings: Any) -> EndpointModel:
        config = EndpointConfig(**{"base_url": self.url, "model": "big", "timeout_s": 60, **settings})
        return EndpointModel(config, book, sleep=self.no_wait, clock=lambda: self.now_s)

    now_s = 100.0

    async def no_wait(self, seconds: float) -> None:
        """Tries follow at once."""
        self.waits_s.append(seconds)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would leave the thread in accept()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self.n_lines += 1
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line, line.makefile("rb") as said:
            while head := _head(said):
                lengths = [h.partition(":")[2] for h in head.split("\r\n") if h.lower().startswith("content-length")]
                self.bodies.append(json.loads(said.read(int(lengths[0]))))
                self.heads.append(head)
                deed = self.deeds.pop(0) if len(self.deeds) > 1 else self.deeds[0]
                if not deed(line):
                    with contextlib.suppress(OSError):  # the client has gone
                        line.shutdown(socket.SHUT_RDWR)
                    return


def _head(said: BinaryIO) -> str:
    lines = []
    while (line := said.readline()) not in (b"", b"\r\n"):
        lines.append(line)
    return b"".join(lines).decode() if line else ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    made = Server()
    yield made
    made.close()


def ask(model: EndpointModel, bill: Bill | None = None) -> str:
    return asyncio.run(model.complete(Request.ask("Is it?").model_copy(update={"bill": bill}))).text


def all_of(model: EndpointModel, n: int) -> list[BaseException | Completion]:
    """What comes of `n` requests, one after the other."""

    async def one_by_one() -> list[BaseException | Completion]:
        return [(await asyncio.gather(model.complete(Request.ask("?")), return_exceptions=True))[0] for _ in range(n)]

    return asyncio.run(one_by_one())


def streamed(model: EndpointModel) -> list[str]:
    async def collect() -> list[str]:
        return [c.text async for c in model.stream(Request.ask("Is it?"))]

    return asyncio.run(collect())


# --- what goes over the line ---------------------------------------------------------------------


async def test_the_key_goes_along_and_no_cookie_comes_back(server: Server) -> None:
    server.deeds = [reply("200 OK", BODY, "Set-Cookie: a=b; Path=/"), OK]
    model = server.model()
    await model.complete(Request.ask("one"))
    await model.complete(Request.ask("two"))
    assert "Authorization: Bearer sk-secret" in server.heads[1]
    assert "cookie" not in server.heads[1].lower()
    assert server.n_lines == 1  # the connection was used again


def test_a_model_serves_several_event_loops_and_may_be_used_after_closing(server: Server) -> None:
    model = server.model()

    async def use_and_close_twice() -> str:
        await model.complete(Request.ask("one"))
        await model.aclose()
        await model.aclose()
        return (await model.complete(Request.ask("two"))).text

    assert [ask(model), asyncio.run(use_and_close_twice()), ask(model)] == ["yes"] * 3


def test_loopback_is_reached_past_a_proxy_and_a_netrc(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(server.model()) == "yes"
    assert "Bearer sk-secret" in server.heads[0]


def test_lines_of_a_stream_may_be_cut_anywhere(server: Server) -> None:
    whole = b"".join([piece("ca"), piece("fé"), piece("", "stop"), chunk({"choices": [], "usage": {
        "prompt_tokens": 3, "completion_tokens": 2}}), chunk("[DONE]"), b"0\r\n\r\n"])  # fmt: skip

    def drip(line: socket.socket) -> bool:
        line.sendall(CHUNKED)
        for start in range(0, len(whole), 7):
            line.sendall(whole[start : start + 7])
            time.sleep(0.001)
        return True

    server.deeds = [drip]
    assert streamed(server.model()) == ["ca", "fé", ""]


# --- what breaks ---------------------------------------------------------------------------------


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"


@pytest.mark.parametrize(
    ("deed", "timeout_s", "message", "outcome"),
    [
        (say_and_hang_up(b""), 60, "gave no answer: Server disconnected", "broken off"),
        (say_and_hang_up(b"HTTP/1.1 2"), 60, "gave no answer: ", "broken off"),
        (say_and_hang_up(b"nonsense\r\n\r\n"), 60, "gave no answer: ", "broken off"),
        (say_and_hang_up(HALF), 60, "it broke off", "broken off"),
        (lambda line: line.sendall(HALF) or say_nothing(line), 0.1, r"it broke off \(.*Timeout", "broken off"),
        (say_nothing, 0.1, r"no answer within 0\.1 s", "timeout"),
        (reply("500 Oops", b"died"), 60, "HTTP 500: died", "HTTP 500"),
        *((reply(f"{code} Oops"), 60, f"HTTP {code}", f"HTTP {code}") for code in (408, 502, 503, 504, 529)),
    ],
)
def test_a_request_that_may_be_paid_is_sent_once_and_its_cost_is_unknown(
    server: Server, deed: Deed, timeout_s: float, message: str, outcome: str
) -> None:
    server.deeds = [deed, OK]
    bill = Bill()
    with pytest.raises(AnswerLost, match=message) as caught:
        ask(server.model(timeout_s=timeout_s), bill)
    assert (len(server.heads), caught.value.retryable) == (1, False)
    assert caught.value.reason
    assert [(a.endpoint, a.model, a.outcome, a.cost_usd) for a in bill.attempts] == [(server.url, "big", outcome, None)]


def test_an_endpoint_that_cannot_be_reached_is_tried_again(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    bill = Bill()
    with pytest.raises(Unavailable, match="after 4 tries"):
        ask(server.model(base_url=url), bill)
    assert [(a.outcome, a.cost_usd) for a in bill.attempts] == [("not connected", 0)] * 4


def test_headers_that_never_end_time_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(line: socket.socket) -> bool:
        line.sendall(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            while True:
                line.sendall(b"X: y\r\n")
                time.sleep(0.05)
        return False

    server.deeds = [drip]
    monkeypatch.setattr("smallfirst.models.remote.client.CONNECT_TIMEOUT_S", 0.1)
    with pytest.raises(AnswerLost):
        ask(server.model(timeout_s=0.2))


@pytest.mark.parametrize("ending", [b"", b"0\r\n\r\n"])
def test_a_stream_that_ends_early_is_an_error(server: Server, ending: bytes) -> None:
    server.deeds = [say_and_hang_up(CHUNKED + piece("half") + ending)]
    with pytest.raises(AnswerLost, match="it broke off"):
        streamed(server.model())
    assert len(server.heads) == 1


async def test_a_cancelled_request_gives_up_its_connection_and_its_slot(server: Server) -> None:
    server.deeds = [say_nothing, OK]
    model = server.model(max_concurrency=1, timeout_s=600)
    bill = Bill()
    asked = Request.ask("Is it?").model_copy(update={"bill": bill})
    task = asyncio.create_task(model.complete(asked))
    await until_async(lambda: server.heads)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await model.complete(asked)).text == "yes"
    assert [(a.outcome, a.cost_usd is None) for a in bill.attempts] == [("abandoned", True), ("answered", False)]


# --- the breaker ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "kind"), [(reply("400 Bad Request"), BadAnswer), (reply("429 Slow Down"), RateLimited)]
)
def test_a_refusal_shows_that_the_endpoint_is_there(server: Server, deed: Deed, kind: type[ModelError]) -> None:
    server.deeds = [deed]
    assert [type(error) for error in all_of(server.model(max_retries=0), 6)] == [kind] * 6


def test_streams_that_break_off_open_the_breaker(server: Server) -> None:
    server.deeds = [say_and_hang_up(CHUNKED + piece("half"))]
    model = server.model()
    for _ in range(MAX_FAILURES):
        with pytest.raises(Unavailable, match="broke off"):
            streamed(model)
    with pytest.raises(CircuitOpenError):
        streamed(model)


def test_retries_stop_when_the_breaker_opens_and_ready_asks_nobody_and_raises_until_it_closes(server: Server) -> None:
    model = server.model(max_retries=10)
    assert Capability.READINESS in model.capabilities
    asyncio.run(model.ready())
    assert server.heads == []
    server.deeds = [BUSY]
    with pytest.raises(Unavailable, match=f"HTTP 503 after {MAX_FAILURES} tries"):
        ask(model)
    with pytest.raises(CircuitOpenError):
        asyncio.run(model.ready())
    assert len(server.heads) == MAX_FAILURES
    server.now_s += 1
    asyncio.run(model.ready())


def test_the_breaker_opens_probes_and_closes() -> None:
    now_s = 1000.0
    breaker = CircuitBreaker(lambda: now_s)

    def fail(times: int) -> float:
        for _ in range(times):
            assert breaker.enter()
            breaker.record(answered=False)
        return breaker.remaining_open_s

    assert fail(MAX_FAILURES - 1) == 0
    breaker.record(answered=True)  # only failures in a row count
    assert fail(MAX_FAILURES) == 1
    breaker.record(answered=False)  # sent before it opened
    now_s += 0.75
    assert (breaker.enter(), breaker.remaining_open_s) == (False, 0.25)
    rests = []
    for _ in range(6):  # each failed probe doubles the rest
        now_s += breaker.remaining_open_s
        rests.append(fail(1))
    assert rests == [2, 4, 8, 16, 30, 30]
    now_s += 30
    assert (breaker.enter(), breaker.enter()) == (True, False)  # nobody else, until the probe is back
    now_s += 30
    assert breaker.enter()  # the caller of that probe left
    breaker.record(answered=True)
    assert fail(MAX_FAILURES) == 1
