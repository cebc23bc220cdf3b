"""Chats with tools at a server, as OpenAI's own client sees them."""

import base64
import copy
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fixtures.assistants import TOOLS, call, conversation
from fixtures.certificates import certificate
from fixtures.dashboard import large_model
from fixtures.documents import pdf
from fixtures.server import WholeModel
from fixtures.waiting import beside, until

from smallfirst.data.conversations import NO_CALL, from_text, read_functions, write_call
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Completion, Request, ValuePlace
from smallfirst.routing.router import Router

ORDER = {"tea": "Misty Valley", "day": "2026-03-03", "boxes": 2}


class Assistant(WholeModel):
    """Answers `text`, and keeps what it was asked."""

    name = "assistant-1"
    functions: Any = read_functions(TOOLS)

    def __init__(self, text: str = "") -> None:
        self.text, self.asked = text, list[str]()

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request.text)
        place = ValuePlace(message=1, role="user", start=3, end=8, words="Misty")
        return Completion(
            text=self.text, answered_by=self.name, latency_ms=1, cost_usd=0.0, confidence=0.9, read={"tea": place}
        )


class Classifier(Assistant):
    functions = None


@pytest.fixture
def messages() -> list[Any]:
    return next(found for number in range(20) if len(found := conversation(number)) > 9)[:-3]


def test_a_call_comes_back_as_openai_writes_it(start, messages: list[Any]) -> None:
    model = Assistant(write_call("OrderTea", ORDER))
    client = start(m=model).client()
    asked = {"model": "m", "messages": messages, "tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**asked).choices[0]
    (made,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (made.function.name, json.loads(made.function.arguments)) == ("OrderTea", ORDER)
    assert [turn.kind for turn in from_text(model.asked[0])][:2] == ["system", "user"]

    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    parts = [part for chunk in chunks for part in chunk.delta.tool_calls or ()]
    assert "".join(part.function.arguments for part in parts) == made.function.arguments
    assert (parts[0].function.name, chunks[-1].finish_reason) == ("OrderTea", "tool_calls")
    assert not any(chunk.delta.content for chunk in chunks)


def test_where_arguments_were_read_is_told_and_their_words_are_not_kept(start, messages: list[Any], tmp_path) -> None:
    router = Router(Assistant(write_call("OrderTea", ORDER)), large_model(), certificate(0.8))
    asked = {"model": "m", "messages": messages, "tools": TOOLS}
    found = start(m=router).client().chat.completions.create(**asked)
    (step,) = (one for one in found.smallfirst["steps"] if one["decision"] == "kept")
    place = {"message": 1, "role": "user", "start": 3, "end": 8}
    assert (step["function"], step["read"]) == ("OrderTea", {"tea": place | {"words": "Misty"}})
    assert found.smallfirst["read"] == {"tea": place | {"words": "Misty"}}
    kept = Ledger(tmp_path / "ledger.sqlite").get(found.id).steps
    assert [one.read["tea"].model_dump(exclude_defaults=True) for one in kept if one.read] == [place]


def test_a_document_in_a_chat_is_asked_as_its_text_and_a_bad_one_is_refused_by_name(start) -> None:
    model = Classifier("{}")
    client = start(m=model).client()

    def ask(raw: bytes, name: str = "a.pdf") -> Any:
        data = "data:application/pdf;base64," + base64.b64encode(raw).decode()
        file = {"type": "file", "file": {"filename": name, "file_data": data}}
        return client.chat.completions.create(model="m", messages=[{"role": "user", "content": [file]}])

    ask(pdf("Invoice 7", "total: 5.00"))
    assert model.asked == ["Invoice 7\ftotal: 5.00"]
    for raw, rule in ((b"x", "broken: no PDF"), (pdf(None), "scanned: its 1 page"), (pdf(*["a"] * 501), "501 pages")):
        with pytest.raises(openai.BadRequestError, match=rf"messages\[0\].content\[0\]: a.pdf: {rule}"):
            ask(raw)
    assert len(model.asked) == 1


def test_documents_of_one_key_keep_no_other_waiting(start, tmp_path: Path) -> None:
    """Two requests of one key, each with many documents, do not hold both readers."""
    store, model = KeyStore(tmp_path / "keys.db"), Classifier("{}")
    one, other = (store.create(role, KeyPolicy(role=role))[1] for role in ("user", "admin"))
    server = start(key_store=store, m=model)

    def send(key: str, n_documents: int) -> None:
        file = {"filename": "a.pdf", "file_data": base64.b64encode(pdf(f"{n_documents} of them")).decode()}
        turn = {"role": "user", "content": [{"type": "file", "file": file}] * n_documents}
        server.client(key).chat.completions.create(model="m", messages=[turn])

    head = {"authorization": f"Bearer {other}"}
    with beside(lambda: send(one, 8), (), ()):
        until(lambda: "smallfirst_requests_in_flight 2.0" in httpx.get(f"{server.url}/metrics", headers=head).text)
        send(other, 1)
        assert model.asked == ["1 of them"]
    assert len(model.asked) == 3


def test_text_stays_text_and_no_call_is_a_refusal(start, messages: list[Any]) -> None:
    asked = {"model": "m", "messages": messages, "tools": TOOLS}
    said = start(m=Assistant("How many boxes?")).client().chat.completions.create(**asked).choices[0]
    assert (said.message.content, said.message.tool_calls, said.finish_reason) == ("How many boxes?", None, "stop")
    refused = start(m=Assistant(NO_CALL)).client().chat.completions.create(**asked).choices[0].message
    assert refused.content is None
    assert "Nobody here answers this turn" in (refused.refusal or "")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"tools": TOOLS[:1]}, "tools_changed", "OrderTea is missing"),
        ({"tools": [{"type": "web_search"}]}, "invalid_tools", "no function"),
        ({"tool_choice": "required"}, "unsupported_parameter", '"auto"'),
        ({"messages": [call("FindTea")]}, None, "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, None, "no text"),
    ],
)
def test_what_a_caller_cannot_answer_is_named(
    start, messages: list[Any], change: dict[str, Any], code: str | None, words: str
) -> None:
    client = start(m=Assistant("x")).client()
    asked = {"model": "m", "messages": messages, "tools": copy.deepcopy(TOOLS), **change}
    with pytest.raises(openai.BadRequestError, match=words) as error:
        client.chat.completions.create(**asked)
    assert error.value.code == code


def test_a_model_that_answers_in_text_takes_no_tools(start, messages: list[Any]) -> None:
    client = start(m=Classifier("x")).client()
    with pytest.raises(openai.BadRequestError, match="it answers in text"):
        client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
