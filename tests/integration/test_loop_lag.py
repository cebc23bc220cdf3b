"""Nothing that a client sends holds the event loop."""

import json
from typing import Any

import httpx
import pytest
from fixtures.loop_lag import MAX_LAG_S
from fixtures.server import EchoModel, StartServer


def an_object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def _nested(depth: int) -> dict[str, Any]:
    return {"a": _nested(depth - 1), "b": 2} if depth else {"b": 9}


def _list_of(node: dict[str, Any]) -> dict[str, Any]:
    return an_object(x={"type": "array", "items": node})


_NODE = {"anyOf": [an_object(a={"$ref": "#/$defs/n"}, b={"const": n}) for n in (1, 2)] + [an_object(b={"const": 9})]}
_FORMAT = {"type": "json_schema"}


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        pytest.param(
            an_object(x={"type": "string", "pattern": "^(?:a?){26}(?:aa){100}$"}), {"x": "a" * 227}, id="pattern"
        ),
        pytest.param({**an_object(x={"$ref": "#/$defs/n"}), "$defs": {"n": _NODE}}, {"x": _nested(16)}, id="recursion"),
        pytest.param(
            _list_of({"anyOf": [an_object(**{f"k{n}": {"type": "integer"}}) for n in range(150)]}),
            {"x": [{"k149": 1}] * 10_000},
            id="wide anyOf",
        ),
        pytest.param(_list_of({"enum": [f"e{n}" for n in range(2_000)]}), {"x": ["e1999"] * 18_000}, id="enum"),
        pytest.param(
            _list_of({"type": "string", "pattern": "^(?:(?:a?){14}){17}$"}), {"x": ["a" * 230] * 700}, id="patterns"
        ),
        pytest.param(
            _list_of({"type": "string", "pattern": "(?:[ab]*a[ab]{40}){1,100}x"}), {"x": ["ab" * 400] * 50}, id="states"
        ),
    ],
)
def test_checking_an_answer_under_a_hostile_schema(start: StartServer, schema: dict[str, Any], answer: Any) -> None:
    run = start(echo=EchoModel())
    text = json.dumps(answer, separators=(",", ":"))
    body = {
        "model": "echo",
        "messages": [{"role": "user", "content": text}],
        "response_format": {**_FORMAT, "json_schema": {"name": "a", "schema": schema}},
    }
    httpx.post(f"{run.url}/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": "{}"}]})
    with run.measure_lag() as lag:
        reply = httpx.post(f"{run.url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code in (200, 502)
    assert lag.worst_s < MAX_LAG_S
