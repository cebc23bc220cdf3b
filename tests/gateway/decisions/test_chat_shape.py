"""A chat model is asked for one label a question, and its labels are read strictly."""

from __future__ import annotations

import pytest

from smallfirst.gateway.decisions import chat_shape
from smallfirst.traffic.decisions import openai_shape
from smallfirst.traffic.decisions.question import Usage


def answered(content, **message):
    return {"choices": [{"message": {"content": content, **message}}]}


def test_all_questions_stand_in_one_request_with_their_labels_as_a_schema(ticket):
    asked = openai_shape.read_request(ticket)
    body = chat_shape.write_request(asked, asked.questions[:2], "gpt")
    assert body["model"] == "gpt"
    assert body["messages"][1] == {"role": "user", "content": "My card is lost and nobody answers!"}
    assert "q0: It is urgent.\nIs this true" in body["messages"][0]["content"]
    assert "q1: Which team?\ncards\n" in body["messages"][0]["content"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["q1"] == {"type": "string", "enum": ["cards", "fees", "other"]}
    assert schema["required"] == ["q0", "q1"]


def test_more_labels_than_a_schema_takes_are_listed_in_words_alone(ticket):
    choices = {"type": "choice", "instructions": "?", "choices": [{"value": f"{i}"} for i in range(255)]}
    asked = openai_shape.read_request({**ticket, "questions": [choices] * 2})
    body = chat_shape.write_request(asked, asked.questions, "gpt")
    assert body["response_format"]["json_schema"]["schema"]["properties"]["q1"] == {"type": "string"}


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ('{"q0": "true", "q1": "fees"}', ["true", "fees"]),
        ('```json\n{"q0": true, "q1": "fees"}\n```', ["true", "fees"]),
        ('{"q0": "false", "q1": "none of them"}', ["false", None]),
        ("I think it is fees", [None, None]),
        ('["true"]', [None, None]),
    ],
)
def test_a_label_is_certain_and_anything_else_a_refusal(ticket, content, labels):
    questions = openai_shape.read_request(ticket).questions[:2]
    verdicts = chat_shape.read_response(answered(content), questions)
    found = [None if v.refused else q.labels[v.best] for v, q in zip(verdicts, questions, strict=True)]
    assert found == labels
    assert all(v.refused or max(v.probabilities) == 1.0 for v in verdicts)


def test_a_refusal_of_the_model_refuses_all_and_no_answer_is_an_error(ticket):
    questions = openai_shape.read_request(ticket).questions
    refused = chat_shape.read_response(answered(None, refusal="I cannot"), questions)
    assert [verdict.refused for verdict in refused] == [True] * 3
    with pytest.raises(ValueError, match="a chat completion expected"):
        chat_shape.read_response({"choices": []}, questions)


def test_usage_is_read_in_its_names():
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    assert Usage.of({"usage": usage}) == Usage(9, 2, 4, 0)
    assert Usage.of({}) == Usage()
