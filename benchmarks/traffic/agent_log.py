"""Runs of three agents in three formats of traces, made from public sets.

    python -m benchmarks.traffic.agent_log FOLDER --seed 0

A desk (LangGraph's runs in LangSmith's form) asks whether a request of CLINC150 is in scope, routes it and replies. A
host (spans of the OpenAI Agents SDK) reads a booking of restaurant8k, decides from what it has read whether that is
enough, and replies. An assistant (OpenTelemetry's spans) lists the functions that a conversation of tool_calls may need
and then holds it, with the calls on record. ERRORS of the narrow answers are wrong. Prints how often each step was asked.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.traffic.cases import BOOKING, Json, rows
from benchmarks.traffic.mixed_log import DAYS, START, open_prompts_with_answers

RUNS = {"desk": 2500, "host": 2000, "assistant": 700}
ERRORS = 0.03
SERVICES = ("Banks_1", "Calendar_1", "Homes_1", "Hotels_2", "Movies_1", "Restaurants_1", "Services_1")
MODEL, ANSWERED_BY = "gpt-4o", "gpt-4o-2024-08-06"


class Step(NamedTuple):
    """One request of a run."""

    name: str
    messages: list[Json]
    answer: Json
    tools: Sequence[Json] = ()


def _step(name: str, system: str, user: str, answer: str) -> Step:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return Step(name, messages, {"role": "assistant", "content": answer})


def _said(right: Any, others: Sequence[Any], rng: random.Random) -> Any:
    return rng.choice([one for one in others if one != right]) if rng.random() < ERRORS else right


def _reply(rng: random.Random) -> str:
    return rng.choice(open_prompts_with_answers())[1]


def desk(n: int, rng: random.Random) -> Iterator[list[Step]]:
    asked = rows("clinc150", "train", "test")
    inside, outside = ([r for r in asked if (r["label"] != "oos") == is_in] for is_in in (True, False))
    domains = sorted({r["domain"] for r in inside})
    about = "You route requests of a personal assistant. Hand each over to the department that it is for."
    tools = [
        {"type": "function", "function": {"name": f"transfer_to_{domain}", "parameters": {}}} for domain in domains
    ]
    for r in rng.sample([*rng.sample(inside, n - n // 5), *rng.sample(outside, n // 5)], n):
        scope = _said("yes" if r["label"] != "oos" else "no", ("yes", "no"), rng)
        gate = f"Can one of these departments help with the request: {', '.join(domains)}? Answer yes or no."
        run = [_step("in_scope", gate, f"Request: {r['text']}", scope)]
        if scope == "yes":
            domain = _said(r.get("domain") or rng.choice(domains), domains, rng)
            call = {"id": "c", "type": "function", "function": {"name": f"transfer_to_{domain}", "arguments": "{}"}}
            handed = {"role": "assistant", "content": "", "tool_calls": [call]}
            run.append(_step("route", about, f"Request: {r['text']}", "")._replace(answer=handed, tools=tools))
            asked_for = f"Department: {domain}\nRequest: {r['text']}"
            run.append(
                _step("reply", "Write the assistant's reply in plain and friendly words.", asked_for, _reply(rng))
            )
        yield run


def host(n: int, rng: random.Random) -> Iterator[list[Step]]:
    read = (
        "You take table bookings. Return JSON with date, time, people, first_name and last_name, null where not said."
    )
    enough = "A table can be booked once the number of people or the time is known. Is that so? Answer yes or no."
    asked = rows("restaurant8k", "train", "test")
    for r, other in zip(rng.sample(asked, n), rng.sample(asked, n), strict=True):
        told = _said(r, (r, other), rng)["target"]
        written = json.dumps({name: told.get(name) for name in BOOKING})
        known = _said("yes" if told.get("people") or told.get("time") else "no", ("yes", "no"), rng)
        yield [
            _step("details", read, f"Guest: {r['text']}", written),
            _step("enough", enough, f"Known so far: {written}", known),
            _step("answer", "Write what the host says to the guest, in one or two sentences.", written, _reply(rng)),
        ]


def assistant(n: int, rng: random.Random) -> Iterator[list[Step]]:
    dialogues: dict[str, list[Json]] = {}
    for r in rows("tool_calls", *SERVICES):
        dialogues.setdefault(r["dialogue"], []).append(r)
    names = sorted({tool["function"]["name"] for turns in dialogues.values() for tool in turns[0]["request"]["tools"]})
    about = f"Which of these functions may the conversation need? {', '.join(names)}. Answer with a JSON list of names."
    for turns in rng.sample(list(dialogues.values()), n):
        said = [turn["response"]["choices"][0]["message"] for turn in turns]
        called = dict.fromkeys(call["function"]["name"] for one in said for call in one.get("tool_calls") or ())
        first = turns[0]["request"]["messages"][-1]["content"]
        run = [_step("shortlist", about, f"First message: {first}", json.dumps(_said(list(called), [[names[0]]], rng)))]
        for turn, answer in zip(turns, said, strict=True):
            run.append(Step("turn", turn["request"]["messages"], answer, turn["request"]["tools"]))
        yield run


# Formats: `at` is in seconds since 1970


def _tokens(step: Step) -> tuple[int, int]:
    return len(json.dumps([step.messages, *step.tools])) // 4, len(json.dumps(step.answer)) // 4


def langsmith(trace: str, run: Sequence[Step], at: float) -> Iterator[Json]:
    yield {"id": trace, "trace_id": trace, "run_type": "chain", "name": "LangGraph", "inputs": {}, "start_time": at}
    kinds = {"system": "SystemMessage", "user": "HumanMessage", "assistant": "AIMessage"}
    for i, step in enumerate(run):
        asked, said = (
            [
                {
                    "lc": 1,
                    "type": "constructor",
                    "id": ["langchain", "schema", "messages", kinds[m["role"]]],
                    "kwargs": m,
                }
                for m in of
            ]
            for of in (step.messages, [step.answer])
        )
        usage = dict(zip(("input_tokens", "output_tokens"), _tokens(step), strict=True))
        yield {
            "id": f"{trace}-{i}", "trace_id": trace, "parent_run_id": trace, "run_type": "llm", "name": "ChatOpenAI",
            "start_time": at + 2 * i, "end_time": at + 2 * i + 1,
            "inputs": {"messages": [asked]},
            "outputs": {"generations": [[{"type": "ChatGeneration", "message": said[0]}]], "usage_metadata": usage},
            "extra": {
                "metadata": {"ls_model_name": MODEL, "langgraph_node": step.name},
                "invocation_params": {"model": MODEL, "tools": list(step.tools)},
            },
        }  # fmt: skip


def openai_agents(trace: str, run: Sequence[Step], at: float) -> Iterator[Json]:
    for i, step in enumerate(run):
        usage = dict(zip(("input_tokens", "output_tokens"), _tokens(step), strict=True))
        data = {"type": "generation", "input": step.messages, "output": [step.answer], "model": MODEL, "usage": usage}
        yield {
            "object": "trace.span", "id": f"{trace}-{i}", "trace_id": trace, "parent_id": f"{trace}-agent",
            "started_at": at + 2 * i, "ended_at": at + 2 * i + 1, "span_data": data,
        }  # fmt: skip
    yield {
        "object": "trace.span",
        "id": f"{trace}-agent",
        "trace_id": trace,
        "span_data": {"type": "agent", "name": "host"},
    }
    yield {"object": "trace", "id": trace, "workflow_name": "bookings"}


def opentelemetry(trace: str, run: Sequence[Step], at: float) -> Iterator[Json]:
    spans = [{"traceId": trace, "spanId": f"{trace}-0", "name": "invoke_agent", "attributes": []}]
    for i, step in enumerate(run, 1):
        n_asked, n_said = _tokens(step)
        values = {
            "gen_ai.operation.name": "chat", "gen_ai.request.model": MODEL, "gen_ai.response.model": ANSWERED_BY,
            "gen_ai.input.messages": json.dumps([_in_parts(m) for m in step.messages]),
            "gen_ai.output.messages": json.dumps([_in_parts(step.answer)]),
            **({"gen_ai.tool.definitions": json.dumps(step.tools)} if step.tools else {}),
        }  # fmt: skip
        counts = {"gen_ai.usage.input_tokens": n_asked, "gen_ai.usage.output_tokens": n_said}
        attributes = [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]
        attributes += [{"key": key, "value": {"intValue": str(value)}} for key, value in counts.items()]
        times = {"startTimeUnixNano": int((at + 2 * i) * 1e9), "endTimeUnixNano": int((at + 2 * i + 1) * 1e9)}
        here = {"traceId": trace, "spanId": f"{trace}-{i}", "parentSpanId": f"{trace}-0", "name": f"chat {MODEL}"}
        spans.append({**here, **times, "attributes": attributes})
    yield {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


def _in_parts(message: Json) -> Json:
    kind = {"type": "tool_call_response", "response": message["content"]} if message["role"] == "tool" else None
    parts = [kind or {"type": "text", "content": message["content"]}] if message.get("content") else []
    for call in message.get("tool_calls") or ():
        parts.append({"type": "tool_call", "id": call.get("id"), **call["function"]})
    return {"role": message["role"], "parts": parts}


AGENTS = {"desk": (desk, langsmith), "host": (host, openai_agents), "assistant": (assistant, opentelemetry)}


def write(folder: Path, seed: int) -> Counter[str]:
    """Write a file an agent; return the number of requests of each step."""
    folder.mkdir(parents=True, exist_ok=True)
    asked: Counter[str] = Counter()
    for name, (runs, traces) in AGENTS.items():
        rng = random.Random(seed)
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as log:
            for i, run in enumerate(runs(RUNS[name], rng)):
                asked.update(step.name for step in run)
                at = START.timestamp() + rng.uniform(0, DAYS * 86400)
                log.writelines(json.dumps(line) + "\n" for line in traces(f"{name}-{i}", run, at))
    return asked


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(write(given.folder, given.seed)))
