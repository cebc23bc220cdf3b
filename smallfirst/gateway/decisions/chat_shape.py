"""Typed questions to a chat model: all of a request in one message, answered by one label each, as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from smallfirst.traffic.decisions.question import DecisionRequest, Question, Verdict
from smallfirst.traffic.messages import read_answer

ROUTE = "/v1/chat/completions"
MAX_SCHEMA_OPTIONS = 500
"""Values that OpenAI's structured outputs take in all enums together; more are checked here alone."""
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


def write_request(request: DecisionRequest, questions: Sequence[Question], model: str) -> dict[str, Any]:
    """Return the chat request that asks `questions`."""
    asked = "\n\n".join(f"{_key(i)}: {question.text}" for i, question in enumerate(questions))
    listed = sum(len(question.options) for question in questions) <= MAX_SCHEMA_OPTIONS
    properties = {
        _key(i): {"type": "string", "enum": list(question.labels)} if listed else {"type": "string"}
        for i, question in enumerate(questions)
    }
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": f"Answer these questions about the text, each with one label.\n\n{asked}"},
            {"role": "user", "content": request.text},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answers", "strict": True, "schema": schema},
        },
    }


def read_response(response: dict[str, Any], questions: Sequence[Question]) -> list[Verdict]:
    """Return a verdict of one certain label on each question, a refusal where the model gives none of its labels.

    Raise ValueError where the response holds no answer.
    """
    answer = read_answer(ROUTE, response)
    if answer is None:
        raise ValueError("a chat completion expected")
    labels = {} if answer.finish_reason == "refusal" else _labels(answer.text)
    return [_verdict(labels.get(_key(i)), question) for i, question in enumerate(questions)]


def _key(i: int) -> str:
    return f"q{i}"


def _labels(text: str) -> dict[str, Any]:
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _verdict(said: Any, question: Question) -> Verdict:
    label = str(said).lower() if isinstance(said, bool) else said
    if label not in question.labels:
        return Verdict()
    return Verdict(tuple(float(label == one) for one in question.labels))
