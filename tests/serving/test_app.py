"""The server as OpenAI's own client sees it, over a real socket; all of it is in the ledger."""

import errno
import logging
import math
import threading
from contextlib import closing
from typing import Any

import httpx
import openai
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from smallfirst.base.errors import (
    AnswerLost,
    BadAnswer,
    ModelError,
    PriceUnknown,
    RateLimited,
    Unauthorised,
    Unavailable,
)
from smallfirst.ledger.ledger import Ledger, LedgerUnavailable
from smallfirst.models.protocol import Completion
from smallfirst.serving.app import serve, start_background_work
from smallfirst.serving.settings import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
BODY = {"model": "m", "messages": HELLO}


def test_a_plain_answer_has_its_route_in_body_and_ledger(start, label) -> None:
    server = start(routed=label)
    answer = server.client().chat.completions.create(model="routed", messages=HELLO)
    assert answer.choices[0].message.content == "refund"
    assert answer.usage.total_tokens == 5
    assert answer.model == "routed"
    assert answer.smallfirst["route"] == "small"
    assert answer._request_id == answer.id
    row = server.ledger.get(answer.id)
    assert row.first_token_ms > 0
    assert (row.served_name, row.status, row.answered_by, row.stage) == ("routed", 200, "labels-1", "small")
    assert (row.certified, row.confidence, row.threshold, row.estimated) == (True, 0.75, 0.5, False)
    assert (row.prompt_tokens, row.completion_tokens, row.cost_usd) == (4, 1, 0.25)
    assert [line.usd for line in row.bill] == [0.25]
    assert (row.request_text, row.answer_text) == (None, None)
    stream = server.client().chat.completions.create(model="routed", messages=HELLO, stream=True)
    assert [c.choices[0].delta.content for c in stream] == ["", "refund", None]


def test_products_of_numpy_get_one_thread_where_requests_are_answered(tmp_path) -> None:
    with threadpool_limits(2, user_api="blas"), closing(Ledger(tmp_path / "ledger.db")) as ledger:
        start_background_work(ledger, ())
        threads = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert threads
    assert set(threads) == {1}


def test_bodies_are_stored_only_if_asked_for(start, label) -> None:
    server = start(ServeSettings(store_bodies=True), m=label)
    server.client().chat.completions.create(model="m", messages=HELLO)
    (row,) = server.ledger.rows()
    assert row.request_text == '[["user","hello small world"]]'
    assert row.answer_text == "refund"


def test_a_streamed_answer_comes_in_pieces_with_usage_and_explanation_last(start, echo) -> None:
    server = start(echo=echo)
    stream = server.client().chat.completions.create(
        model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content for c in chunks if c.choices]
    assert pieces == ["", "hello", " small", " world", None]
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None] * 4 + ["stop"]
    assert chunks[-2].smallfirst["answered_by"] == "echo-1"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 6
    assert {c.id for c in chunks} == {stream.response.headers["x-request-id"]}
    assert server.ledger.get(chunks[0].id).cost_usd == 0.5


def test_the_first_piece_of_a_stream_does_not_wait_for_the_rest(start, echo) -> None:
    echo.gate.clear()
    server = start(echo=echo)
    stream = server.client().chat.completions.create(model="echo", messages=HELLO, stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content == "hello"
    assert server.ledger.rows() == ()
    echo.gate.set()
    rest = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in rest) == " small world"
    assert rest[-1].smallfirst["first_token_ms"] > 0
    assert len(server.ledger.rows()) == 1


def test_models_are_listed_and_retrieved(start, echo, label) -> None:
    client = start(small=label, **{"org/large": echo}).client()
    assert [model.id for model in client.models.list()] == ["small", "org/large"]
    assert client.models.retrieve("org/large").owned_by == "smallfirst"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("smalll")
    assert caught.value.body["message"] == (
        'The model "smalll" is not served here — did you mean "small"? Served: org/large, small.'
    )


def test_unknown_paths_and_methods_get_an_openai_error(start, label) -> None:
    server = start(m=label)
    missing = httpx.get(f"{server.url}/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = httpx.get(f"{server.url}/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_an_unknown_model_gets_a_suggestion_and_a_row(start, label) -> None:
    server = start(small=label)
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().chat.completions.create(model="smal", messages=HELLO)
    assert caught.value.code == "model_not_found"
    (row,) = server.ledger.rows()
    assert (row.served_name, row.status, row.error_code) == ("smal", 404, "model_not_found")
    assert row.cost_usd is None
    assert row.id == caught.value.request_id


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (Unavailable("https://inside:1 is down"), 503, "model_unavailable", "is down."),
        (RateLimited("inside"), 429, "rate_limit_exceeded", "is rate limited; try again later."),
        (Unauthorised("inside sk-1"), 502, "upstream_unauthorised", "refused the key of this server."),
        (BadAnswer("inside"), 502, "bad_answer", "gave no usable answer."),
        (BadAnswer("inside", reason="no usage"), 502, "bad_answer", "gave no usable answer: no usage."),
        (AnswerLost("inside", reason="HTTP 500"), 502, "answer_lost", "took the request and gave no answer: HTTP 500."),
        (ModelError("inside"), 502, "bad_answer", "gave no usable answer."),
    ],
)
def test_a_model_that_fails_becomes_a_status_and_a_row(
    start, failing, error: Exception, status: int, code: str, message: str
) -> None:
    server = start(m=failing(error))
    for stream in (False, True):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": stream})
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["message"] == f'The model behind "m" {message}'
        assert answer.headers.get("retry-after") == ("2" if status in (429, 503) else None)
        assert answer.headers.get("x-should-retry") == ("false" if code == "answer_lost" else None)
        assert "inside" not in answer.text
    assert [(row.status, row.error_code) for row in server.ledger.rows()] == [(status, code)] * 2


def test_an_answer_that_cannot_be_recorded_is_not_given_out_and_not_asked_for_again(start, echo, monkeypatch) -> None:
    asked = []

    class Counted(type(echo)):
        async def complete(self, request):
            asked.append(request)
            return await super().complete(request)

    async def full(*rows: Any) -> None:
        raise LedgerUnavailable("disk is full")

    server = start(m=Counted())
    monkeypatch.setattr(server.ledger, "append_async", full)
    with pytest.raises(openai.InternalServerError, match="could not be recorded") as caught:
        server.client().with_options(max_retries=2).chat.completions.create(**BODY)
    assert len(asked) == 1
    headers = caught.value.response.headers
    assert (caught.value.status_code, headers.get("retry-after"), headers.get("x-should-retry")) == (503, None, "false")
    whole, streamed = (
        httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": stream}).text
        for stream in (False, True)
    )
    assert "hello" not in whole
    assert "ledger_unavailable" in streamed
    assert '"stop"' not in streamed
    assert "[DONE]" not in streamed


def test_while_the_ledger_takes_no_row_no_model_is_asked_and_clients_may_try_again(
    start, echo, monkeypatch, caplog
) -> None:
    server = start(m=echo)

    async def away(*rows: Any) -> None:
        raise LedgerUnavailable("no connection")

    def ask() -> httpx.Response:
        return httpx.post(f"{server.url}/v1/chat/completions", json=BODY)

    monkeypatch.setattr(server.ledger, "ready", away)
    assert ask().status_code == 200  # the last row was written, so it is not asked
    server.ledger._failing = True
    monkeypatch.setattr(server.ledger, "append_async", away)
    echo.started.clear()
    refused = ask()
    assert [one.exc_info for one in caplog.records if "did not take a row" in one.message] == [None]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert "x-should-retry" not in refused.headers
    assert refused.json()["error"]["code"] == "ledger_unavailable"
    assert not echo.started.is_set()
    monkeypatch.undo()
    assert ask().status_code == 200
    assert server.ledger._failing is False


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ZeroDivisionError("inside"), 500, "Internal server error."),
        (PriceUnknown("inside"), 500, "Internal server error."),
        (OSError(errno.ENOSPC, "inside"), 507, "The server's disk is full."),
    ],
)
def test_a_bug_and_a_full_disk_tell_nothing_more_but_are_logged(start, failing, error, status, told, caplog) -> None:
    server = start(m=failing(error))
    with caplog.at_level(logging.INFO), pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(**BODY)
    assert caught.value.body["message"] == told
    assert "inside" in caplog.text
    assert "hello small world" not in caplog.text
    assert server.ledger.rows()[0].status == status


def test_a_failure_in_mid_stream_reaches_the_client_as_an_error(start, failing) -> None:
    server = start(m=failing(Unavailable("x"), words=2))
    stream = server.client().chat.completions.create(**BODY, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", "word ", "word "]
    with pytest.raises(openai.APIError, match="is down"):
        next(stream)
    assert [row.status for row in server.ledger.rows()] == [503]


def test_a_stream_without_a_completion_is_a_bad_answer(start, echo) -> None:
    class Unfinished(type(echo)):
        async def stream(self, request):
            for chunk in ():
                yield chunk

    server = start(m=Unfinished())
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "bad_answer")


def test_equal_questions_have_equal_hashes_in_the_ledger(start, label, echo) -> None:
    server = start(small=label, large=echo)
    for name in ("small", "large"):
        server.client().chat.completions.create(model=name, messages=HELLO)
    # printf '[["user","hello small world"]]' | sha256sum
    known = "3608fbc5eb295d7b9046d5cb9249a3abc336887ac1d53cee914c1517f2dffde4"
    assert [row.request_sha256 for row in server.ledger.rows()] == [known, known]


def test_texts_expire_on_a_server_that_keeps_no_new_ones(tmp_path, label, monkeypatch) -> None:
    expired = threading.Event()
    monkeypatch.setattr("smallfirst.serving.app.run", lambda *_, **__: None)
    monkeypatch.setattr(Ledger, "expire_bodies", lambda _: expired.set())
    ledger = Ledger(tmp_path / "ledger.db")
    serve({"m": label}, ledger=ledger, settings=ServeSettings(port=0))
    assert expired.wait(60)
    ledger.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", [{"latency_ms": math.nan}, {"latency_ms": 1.0, "confidence": math.inf}])
def test_an_answer_with_a_number_that_json_lacks_is_recorded_as_failed(start, label, number, stream: bool) -> None:
    async def complete(_: object) -> Completion:
        return Completion(text="a", answered_by="m", cost_usd=0.25, **number)

    label.complete = complete
    server = start(m=label)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "stream": stream})
    assert answer.status_code == (200 if stream else 500)  # a stream has begun by then
    assert stream or answer.headers["x-should-retry"] == "false"  # it is paid
    assert "internal_error" in answer.text
    assert "[DONE]" not in answer.text
    (row,) = server.ledger.rows()
    assert (row.status, row.cost_usd) == (500, 0.25)
