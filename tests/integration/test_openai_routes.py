"""The newer routes as OpenAI's own client sees them, over a real socket."""

import threading
from typing import Any

import httpx
import openai
import pytest
from fixtures.server import WholeModel

from smallfirst.base.errors import ConfigError, RequestRefused, Unavailable
from smallfirst.models.protocol import Capability, Completion, Request, Token
from smallfirst.models.remote.client import CircuitOpenError
from smallfirst.serving.settings import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
BODY = {"model": "m", "messages": HELLO}


class Drawing(WholeModel):
    """Answers its seed."""

    capabilities: frozenset[Capability] = frozenset({Capability.READINESS})
    name = "drawing-1"
    failure: Exception | None = None

    async def complete(self, request: Request) -> Completion:
        top = (("7", -0.5), ("8", -1.0))[: request.logprobs or 0]
        return Completion(
            text=str(request.seed),
            answered_by=self.name,
            latency_ms=2,
            cost_usd=0.25,
            prompt_tokens=3,
            completion_tokens=1,
            tokens=() if request.logprobs is None else (Token(text="é", logprob=-0.5, top=top),),
        )

    async def ready(self) -> None:
        if self.failure is not None:
            raise self.failure


class Writing(Drawing):
    """Writes `text` whatever it is asked."""

    def __init__(self, text: str, labels: tuple[tuple[str, float], ...] = ()) -> None:
        self.text, self.labels = text, labels

    async def complete(self, request: Request) -> Completion:
        answer = await super().complete(request)
        return answer.model_copy(update={"text": self.text, "alternatives": self.labels})


@pytest.mark.parametrize("stream", [False, True])
def test_token_probabilities_have_openai_s_form(start, stream: bool) -> None:
    client = start(m=Drawing()).client()
    answer = client.chat.completions.create(**BODY, logprobs=True, top_logprobs=1, stream=stream)
    found = next(c.choices[0] for c in answer if c.choices[0].logprobs) if stream else answer.choices[0]
    (token,) = found.logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("é", -0.5, [195, 169])
    assert [(t.token, t.logprob, t.bytes) for t in token.top_logprobs] == [("7", -0.5, [55])]
    assert client.chat.completions.create(**BODY).choices[0].logprobs is None


def test_a_completion_answers_a_prompt(start) -> None:
    server = start(m=Drawing())
    answer = server.client().completions.create(model="m", prompt="a", seed=4, logprobs=1)
    assert answer.object == "text_completion"
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(0, "4", "stop")]
    assert answer.choices[0].logprobs.model_dump() == {
        "tokens": ["é"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"7": -0.5}],
        "text_offset": [0],
    }
    assert answer.usage.prompt_tokens == 3
    stream = server.client().completions.create(model="m", prompt="a", seed=4, stream=True)
    assert [c.choices[0].text for c in stream] == ["4", ""]


def test_an_answer_without_the_form_asked_for_does_not_reach_the_client(start) -> None:
    form = {"type": "json_object"}
    server = start(bad=Writing("not json"), good=Writing('{"a": 1}'), label=Writing("x", (("x", 1.0),)))
    client = server.client()
    assert client.chat.completions.create(model="good", messages=HELLO, response_format=form).choices[0].message
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="bad", messages=HELLO, response_format=form)
    assert caught.value.status_code == 502
    with pytest.raises(openai.BadRequestError, match="labels"):
        client.chat.completions.create(model="label", messages=HELLO, response_format=form)
    with pytest.raises(openai.APIError, match="no usable answer"):
        list(client.chat.completions.create(model="bad", messages=HELLO, response_format=form, stream=True))


def test_what_a_model_refuses_is_told_and_what_it_says_of_this_machine_is_not(start, failing) -> None:
    server = start(a=failing(RequestRefused("too long")), b=failing(ConfigError("/inside/path")))
    told = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "model": "a"})
    assert (told.status_code, told.json()["error"]["message"]) == (400, "too long")
    hidden = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "model": "b"})
    assert hidden.status_code == 500
    assert "inside/path" not in hidden.text


def test_mlflow_asks_a_chat_or_a_prompt_of_the_model_in_the_path_or_of_the_first(start) -> None:
    server = start(m=Drawing())
    for path, asked in (("/invocations", {"seed": 5}), ("/serving-endpoints/m/invocations", {"seed": 5, "model": "x"})):
        chat = httpx.post(f"{server.url}{path}", json={"messages": HELLO, **asked}).json()
        assert chat["choices"][0]["message"]["content"] == "5"
    assert httpx.post(f"{server.url}/invocations", json={"prompt": "a", "seed": 6}).json()["choices"][0]["text"] == "6"
    assert [row.served_name for row in server.ledger.rows()] == ["m"] * 3
    refused = httpx.post(f"{server.url}/endpoints/m/invocations", json={"dataframe_split": {}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dataframe_split")


def test_readiness_is_real_work_and_recovers(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.serving.request_lifecycle.FRESH_S", 0.0)
    model = Drawing()
    server = start(m=model)
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    model.failure = Unavailable("inside")
    down = httpx.get(f"{server.url}/ready")
    assert (down.status_code, down.json()) == (503, {"status": "not ready"})
    assert httpx.get(f"{server.url}/health").status_code == 200
    model.failure = CircuitOpenError("an upstream is down", retry_after_s=5)
    assert httpx.get(f"{server.url}/ready").status_code == 200
    model.failure = None
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_figures_count_requests_tokens_and_first_tokens(start) -> None:
    server = start(m=Drawing())
    client = server.client()
    client.chat.completions.create(**BODY)
    list(client.chat.completions.create(**BODY, stream=True))
    httpx.post(f"{server.url}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    shown = httpx.get(f"{server.url}/metrics").text
    assert 'smallfirst_requests_total{route="chat/completions",status="200"} 2.0' in shown
    assert 'smallfirst_requests_total{route="chat/completions",status="400"} 1.0' in shown
    assert 'smallfirst_tokens_total{kind="prompt",stage="m"} 6.0' in shown
    assert 'smallfirst_first_token_seconds_count{stage="m"} 2.0' in shown
    assert "smallfirst_requests_in_flight 0.0" in shown


def test_a_queue_is_bounded_in_tokens_but_one_prompt_alone_always_fits(start, echo) -> None:
    echo.gate.clear()
    server = start(ServeSettings(max_prompt_tokens_in_flight=10), m=echo)
    url = f"{server.url}/v1/chat/completions"
    with httpx.Client() as client:
        waiting = client.build_request("POST", url, json=BODY)
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(client.send(waiting).status_code))
        thread.start()
        assert echo.started.wait(60)
        refused = httpx.post(url, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "2"
        echo.gate.set()
        thread.join()
    assert answers == [200]
