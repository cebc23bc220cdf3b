"""What a client gets, and the ledger keeps, of an answer that its settings took out of the certificate."""

import json
from typing import Any

import openai
import pytest
from fixtures.certificates import certificate
from fixtures.server import RunningServer, SayingModel, WholeModel

from smallfirst.models.protocol import Completion, Request, ValuePlace
from smallfirst.routing.router import Router
from smallfirst.serving.completions import with_places
from smallfirst.serving.settings import ServeSettings

SAMPLED = "temperature 1.5: certified are answers at temperature 0"


class Generates(WholeModel):
    """Says the first words of the question again, as many as the request allows, and is sure of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def complete(self, request: Request) -> Completion:
        words = request.text.split(" ")
        said = words[: request.max_tokens]
        reason: Any = "length" if len(said) < len(words) else "stop"
        fields = {"finish_reason": reason, "confidence": 0.9, "completion_tokens": len(said), "stopped": False}
        return Completion(text=" ".join(said), answered_by=self.name, latency_ms=1.0, cost_usd=0.25, **fields)


@pytest.fixture
def server(start) -> RunningServer:
    return start(m=Router(Generates("small"), Generates("large"), certificate(0.8), name="m"))


def certified(server: RunningServer) -> list[tuple[bool, str]]:
    return [(row.certified, row.answered_by) for row in server.ledger.rows()]


def test_a_sampled_answer_is_the_large_models_whole_and_streamed(server: RunningServer) -> None:
    client, messages = server.client().chat.completions, [{"role": "user", "content": "a b c"}]
    plain = client.create(model="m", messages=messages)
    whole = client.create(model="m", messages=messages, temperature=1.5)
    stream = list(client.create(model="m", messages=messages, temperature=1.5, stream=True))
    assert plain.smallfirst["certified"] is True
    for found in (whole, stream[-1]):
        said = found.smallfirst
        assert (said["certified"], said["route"], said["why"]) == (False, "large", SAMPLED)
        assert [step["decision"] for step in said["steps"]] == ["passed on", "answered"]
    assert certified(server) == [(True, "small"), (False, "large"), (False, "large")]


def test_places_are_in_the_answer_for_those_who_ask_and_not_in_the_ledger(start) -> None:
    said = '{"total": 5.0, "tags": ["a", "b"], "note": null}'
    place = ValuePlace(message=0, role="user", start=14, end=16, page=2, offset=5, words="€ 5")
    read = {"total": place, "tags[1]": None}
    small = SayingModel("small", lambda request: said, read=read, confidence=0.9)
    server = start(ServeSettings(store_bodies=True), m=small)
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "a letter\fpaid € 5"}]}
    ask, places = server.client().chat.completions.create, {"extra_body": {"smallfirst": {"places": True}}}
    assert ask(**asked).choices[0].message.content == said
    nowhere = {"page": None, "offset": None, "words": None}
    assert json.loads(ask(**asked, **places).choices[0].message.content) == {
        "total": {"value": 5.0, "page": 2, "offset": 5, "words": "€ 5"},
        "tags": [{"value": "a", **nowhere}, {"value": "b", **nowhere}],
        "note": None,
    }
    assert [row.answer_text for row in server.ledger.rows()] == [said, said]
    for other in ({"stream": True}, {"logprobs": True}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(openai.BadRequestError, match="places are part of a whole answer"):
            ask(**asked, **other, **places)


def test_what_has_no_fields_stays_as_it_is() -> None:
    answer = Completion(text='{"a": 1}', answered_by="m", latency_ms=1, cost_usd=0)
    assert with_places(answer) != answer
    for changes in ({"text": "card"}, {"text": "[1]"}, {"text": '{"a":'}, {"text": "[" * 100_000}, {"refusal": True}):
        assert with_places(same := answer.model_copy(update=changes)) == same
