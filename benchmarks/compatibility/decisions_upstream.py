"""An upstream for typed questions in three shapes, whose verdicts depend on the state and the number of options alone.

    python -m benchmarks.compatibility.decisions_upstream PORT

So each client's answers are known, whatever shapes stand between it and this server. A state with `overload` in it is refused
for a while; one with `refuse` gets a refusal on its first question.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from aiohttp import web

from benchmarks.compatibility.decisions_clients import shares

Json = dict[str, Any]


def _openai_state(given: Any) -> Any:
    if isinstance(given, str):
        return given
    content = given[0]["content"]
    if isinstance(content, str):
        return content
    return content[0].get("data", content[0].get("text"))


def _openai_answer(question: Json, state: Any) -> Json:
    kind, name = question["type"], question.get("name")
    if kind == "predicate":
        return {"type": kind, "name": name, "probability": shares(state, 2)[0]}
    options = question["choices" if kind == "choice" else "levels"]
    found = shares(state, len(options))
    if kind == "choice":
        listed = [{"value": one["value"], "probability": p} for one, p in zip(options, found, strict=True)]
        said: Json = {"choice": options[found.index(max(found))]["value"]}
    else:
        pairs = enumerate(zip(options, found, strict=True))
        listed = [{"value": i, "label": one["label"], "probability": p} for i, (one, p) in pairs]
        said = {"score": sum(i * p for i, p in enumerate(found))}
    return {"type": kind, "name": name, **said, "confidence": max(found), "probabilities": listed}


def _systemone_answer(question: Json, state: Any) -> Json:
    kind = question["type"]
    if kind == "noul":
        return {"type": kind, "noul": shares(state, 2)[0]}
    criteria = question["criteria"]
    found = shares(state, len(criteria))
    if kind == "choice":
        probabilities = dict(zip(criteria, found, strict=True))
        said: Json = {"choice": max(probabilities, key=probabilities.__getitem__)}
    else:
        probabilities = {str(i): p for i, p in enumerate(found)}
        said = {
            "score": sum(i * p for i, p in enumerate(found)),
            "legend": dict(zip(probabilities, criteria, strict=True)),
        }
    return {"type": kind, **said, "confidence": max(found), "probabilities": probabilities}


async def decisions(request: web.Request) -> web.Response:
    """OpenAI's shape."""
    body = await request.json()
    state = _openai_state(body["input"])
    if (slow := _slow(state)) is not None:
        return slow
    answers = [_openai_answer(question, state) for question in body["questions"]]
    if "refuse" in str(state):
        answers[0] = {"type": "refusal", "name": body["questions"][0].get("name")}
    usage = {
        "input_tokens": 50,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 51,
    }
    return web.json_response({"answers": answers, "model": "judge-1", "usage": usage})


async def systemone(request: web.Request) -> web.Response:
    """TypeSafe's shape, which knows no refusals."""
    body = await request.json()
    if (slow := _slow(body["state"])) is not None:
        return slow
    answers = {name: _systemone_answer(question, body["state"]) for name, question in body["questions"].items()}
    usage = {"input_tokens": 50, "output_tokens": 1}
    headers = {"x-typesafe-request-id": "their-id"}
    return web.json_response({"model": "judge-1", "answers": answers, "usage": usage}, headers=headers)


async def chat(request: web.Request) -> web.Response:
    """A chat model: one label a question, under the schema of the request."""
    body = await request.json()
    text = body["messages"][-1]["content"]
    try:
        state = json.loads(text)
    except ValueError:
        state = text
    if (slow := _slow(state)) is not None:
        return slow
    labels = {}
    for name, one in body["response_format"]["json_schema"]["schema"]["properties"].items():
        found = shares(state, len(one["enum"]))
        labels[name] = one["enum"][found.index(max(found))]
    if "refuse" in text:
        labels["q0"] = "none of them"
    message = {"role": "assistant", "content": json.dumps(labels)}
    usage = {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return web.json_response(
        {"id": "c", "object": "chat.completion", "model": "judge-1", "choices": choices, "usage": usage}
    )


def _slow(state: Any) -> web.Response | None:
    if "overload" not in str(state):
        return None
    return web.json_response({"error": {"message": "Slow down."}}, status=429, headers={"retry-after": "0"})


def main() -> None:
    """Serve until killed."""
    app = web.Application()
    for path, handler in (("/decisions", decisions), ("/systemone", systemone), ("/chat/completions", chat)):
        app.router.add_post(f"/v1{path}", handler)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
