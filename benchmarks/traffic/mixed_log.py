"""A month of requests to a large model: ten narrow tasks of public sets in many wordings, among open requests.

Each task is asked in three to five wordings: the instruction in the system message, all in one user message, solved
examples in turns or inside the message, examples that change with every request, dates, ticket numbers and customer
tiers beside the case, a second version of a wording that replaces the first at a known time, two routes. Answers of
hosted_banking77 and hosted_invoices are those of a hosted large model on record; the other ones are right answers with a
known share of wrong ones, 2 % of them drawn anew on each request. Noise: questions and instructions of open sets, bare,
under a stock system prompt or under an assistant's; conversations that grow; an agent that calls tools.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from benchmarks.traffic import wordings
from benchmarks.traffic.cases import TASKS, Case, Kind, Recorded, TaskCases, conversations, open_prompts, wrong
from benchmarks.traffic.wordings import Turns, Use
from smallfirst.traffic.exchange import Exchange

START = datetime(2026, 10, 1, tzinfo=UTC)
DAYS = 30
REQUESTS = 24_000
NOISE_SHARE = 0.15
SHARES = {
    "hosted_banking77": 0.19, "hosted_invoices": 0.1, "banking_card": 0.1, "clinc_domain": 0.11, "clinc_intent": 0.14,
    "snips": 0.09, "restaurant8k": 0.08, "e2e_restaurants": 0.08, "pubmedqa": 0.04, "xquad": 0.04, "medquad": 0.03,
}  # fmt: skip
"""Shares of the requests that belong to tasks."""
REPEATED, REDRAWN = 0.05, 0.02
"""Share of requests that ask an earlier case again; share of wrong-or-right draws that are made anew on each request."""
MODELS = ("gpt-4o-mini", "gpt-4o")
PRICES = {"gpt-4o-mini": (0.15, 0.6), "gpt-4o": (2.5, 10.0), "deepseek-v4.1-flash": (0.0, 0.0)}
"""Dollars per million tokens of prompt and answer."""
_SLOT = re.compile(r"<<(\w+)>>")
_ASSISTANT = "You are a helpful assistant."
_ADA = (
    "You are Ada, the assistant in the app of Northwind Traders. Be friendly and brief, answer in the language of the "
    "user, and say so if you do not know something."
)
_AGENT = "You work through the user's request step by step and may call tools. Stop when you have the answer."


class Truth(NamedTuple):
    """What a request of the log really is."""

    id: str
    task: str
    """Empty for noise."""
    wording: str
    """Task, frame and version, such as snips/system_bare/1; for noise the kind of it."""
    kind: Kind | str
    """label, json, short or text; for noise open, assistant, persona, conversation or agent."""
    slots: dict[str, str]
    """Values that were filled in, by the name of the slot."""
    gold: Any = None
    """The right answer."""
    value: Any = None
    """The answer that was given, before it was put in its format."""
    answer_format: str = ""
    """label, frame, json, compact, indent, fence, tool or text."""


class Entry(NamedTuple):
    """A request with what is known about it."""

    exchange: Exchange
    truth: Truth


def mixed_log(seed: int = 0, requests: int = REQUESTS, tasks: Sequence[str] = tuple(TASKS)) -> list[Entry]:
    rng = random.Random(seed)
    n_tasks = round(requests * (1 - NOISE_SHARE))
    total = sum(SHARES[name] for name in tasks)
    entries = [
        entry for name in tasks for entry in _task_entries(TASKS[name](), round(n_tasks * SHARES[name] / total), rng)
    ]
    return _in_time(entries + _noise(requests - n_tasks, rng))


def noise_log(seed: int = 0, requests: int = 7_500) -> list[Entry]:
    return _in_time(_noise(requests, random.Random(seed)))


def _in_time(entries: list[Entry]) -> list[Entry]:
    ordered = sorted(entries, key=lambda entry: entry.exchange.at)
    named = [(f"r{i:06d}", *entry) for i, entry in enumerate(ordered)]
    return [Entry(exchange.model_copy(update={"id": name}), truth._replace(id=name)) for name, exchange, truth in named]


def _at(rng: random.Random, since: float = 0.0, until: float = 1.0) -> datetime:
    return START + timedelta(days=DAYS * rng.uniform(since, until))


# Tasks


def _task_entries(task: TaskCases, n: int, rng: random.Random) -> list[Entry]:
    uses = [use for use in wordings.USES if use.task == task.name]
    weights = [use.weight * (use.until - use.since) for use in uses]
    models = {use: rng.choice(MODELS) for use in uses}
    examples = [case for case in rng.sample(task.cases, 60) if sum(map(len, case.fields.values())) < 400][:4]
    shown = {
        use: [(_raw(case), _written(use.answer, case.gold, task)[0]) for case in (examples or task.cases[:3])]
        for use in uses
    }
    patterns = {use: wordings.turns(use, task.labels, shown[use]) for use in uses}
    cases = _drawn(task.cases, n, rng)
    return [
        _task_entry(task, use, patterns[use], models[use], case, rng)
        for case, use in zip(cases, rng.choices(uses, weights, k=n), strict=True)
    ]


def _drawn(cases: Sequence[Case], n: int, rng: random.Random) -> list[Case]:
    """Return n cases, most of them once: all again only when none is left, and some as a repetition."""
    drawn: list[Case] = []
    fresh: list[Case] = []
    for _ in range(n):
        if drawn and rng.random() < REPEATED:
            drawn.append(rng.choice(drawn))
            continue
        fresh = fresh or rng.sample(cases, len(cases))
        drawn.append(fresh.pop())
    return drawn


def _task_entry(task: TaskCases, use: Use, pattern: Turns, model: str, case: Case, rng: random.Random) -> Entry:
    at = _at(rng, use.since, use.until)
    slots = _slots(task, use, case, at, rng)
    used = {name: slots[name] for _, text in pattern for name in _SLOT.findall(text)}
    turns = [(role, _SLOT.sub(lambda found: slots[found[1]], text)) for role, text in pattern]
    value = case.gold if case.recorded else _taught(task, case, rng)
    text, tool = (case.recorded.answer, "") if case.recorded else _written(use.answer, value, task)
    model = "deepseek-v4.1-flash" if case.recorded else model
    extra = {**_tools(use, task), **({"response_format": {"type": "json_object"}} if use.answer == "compact" else {})}
    exchange = _exchange(turns, text, tool, model, at, rng, extra, case.recorded)
    wording = f"{task.name}/{use.frame}/{use.version}"
    value = case.recorded.answer if case.recorded else value
    truth = Truth("", task.name, wording, task.kind, used, case.gold, value, use.answer)
    return Entry(exchange, truth)


def _slots(task: TaskCases, use: Use, case: Case, at: datetime, rng: random.Random) -> dict[str, str]:
    form = wordings.DATE_FORMS[zlib.crc32(f"{use.task}{use.frame}".encode()) % len(wordings.DATE_FORMS)]
    slots = dict(case.fields)
    slots |= {f"{name}_json": json.dumps(text, ensure_ascii=False)[1:-1] for name, text in case.fields.items()}
    slots |= {
        "date": at.strftime(form),
        "ticket": str(rng.randrange(10_000, 99_999)),
        "uuid": f"{rng.getrandbits(64):016x}",
        "channel": rng.choice(("email", "app", "web chat", "phone")),
        "tier": rng.choice(("basic", "basic", "silver", "gold")),
        "company": {0: "Acme Corp", 1: "Globex"}[zlib.crc32(use.task.encode()) % 2],
    }
    for name in "abc":
        shot = rng.choice(task.cases)
        slots |= {f"shot_{name}": _raw(shot), f"shot_answer_{name}": _written(use.answer, shot.gold, task)[0]}
    return slots


def _raw(case: Case) -> str:
    return "\n\n".join(reversed(case.fields.values()))


def _taught(task: TaskCases, case: Case, rng: random.Random) -> Any:
    """Return the simulated teacher's answer: the same for the same case, but for a few draws."""
    key = zlib.crc32(json.dumps(case.fields, sort_keys=True).encode())
    own = rng if rng.random() < REDRAWN else random.Random(key)
    if task.errors == 0.0:
        return case.gold
    value = wrong(task, case.gold, own) if own.random() < task.errors else case.gold
    return {k: v for k, v in value.items() if v is not None} if task.name == "snips" else value


def _written(answer: str, value: Any, task: TaskCases) -> tuple[str, str]:
    """Return the text of an answer, and the name of the function whose arguments it is, if it is a tool call."""
    if isinstance(value, str):
        if answer in ("label", "text"):
            return value, ""
        if answer == "frame":
            return f"The answer is **{value}**.", ""
        value = {"answer": value}
    if answer == "tool":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")), f"record_{task.name}"
    if answer == "indent":
        return json.dumps(value, ensure_ascii=False, indent=2), ""
    if answer == "compact":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")), ""
    text = json.dumps(value, ensure_ascii=False)
    return (f"```json\n{text}\n```" if answer == "fence" else text), ""


def _tools(use: Use, task: TaskCases) -> dict[str, Any]:
    if use.answer != "tool":
        return {}
    fields = {"answer": {"type": "string", "enum": list(task.labels)}} if task.labels else {}
    fields = fields or {name: {"type": ["string", "null"]} for name in task.cases[0].gold}
    function = {"name": f"record_{task.name}", "parameters": {"type": "object", "properties": fields}}
    chosen = {"type": "function", "function": {"name": function["name"]}}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": chosen}


# Noise


def _noise(n: int, rng: random.Random) -> list[Entry]:
    """Return n requests of no task: six tenths open ones, the rest conversations and an agent's steps."""
    entries: list[Entry] = []
    chats = conversations()
    prompts = open_prompts()
    pool = rng.sample(prompts, len(prompts))
    while len(entries) < n:
        pool = pool or rng.sample(prompts, len(prompts))
        prompt, answer = pool.pop()
        kind = rng.choices(("open", "assistant", "persona", "conversation", "agent"), (40, 15, 5, 6, 2))[0]
        model, at = rng.choice(MODELS), _at(rng)
        if kind == "conversation":
            system = rng.choice((_ASSISTANT, _ADA, ""))
            said = rng.choice(chats) if rng.random() < 0.3 else [prompt, *(p for p, _ in rng.sample(prompts, 3))]
            entries += _conversation(system, said, model, at, rng)
        elif kind == "agent":
            entries += _agent(prompt, answer, model, at, rng)
        else:
            system = {"open": "", "assistant": _ASSISTANT, "persona": _ADA}[kind]
            turns = [*([("system", system)] if system else []), ("user", prompt)]
            exchange = _exchange(turns, answer or _babble(rng), "", model, at, rng)
            entries.append(Entry(exchange, Truth("", "", kind, kind, {}, value=answer)))
    return entries[:n]


def _conversation(system: str, said: Sequence[str], model: str, at: datetime, rng: random.Random) -> list[Entry]:
    turns = [("system", system)] if system else []
    entries = []
    for text in said[: rng.randint(2, 4)]:
        turns, answer = [*turns, ("user", text)], _babble(rng)
        truth = Truth("", "", "conversation", "conversation", {}, value=answer)
        entries.append(Entry(_exchange(turns, answer, "", model, at, rng), truth))
        turns, at = [*turns, ("assistant", answer)], at + timedelta(seconds=rng.uniform(20, 200))
    return entries


def _agent(prompt: str, answer: str, model: str, at: datetime, rng: random.Random) -> list[Entry]:
    function = {
        "name": "search_web",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    }
    extra = {"tools": [{"type": "function", "function": function}]}
    query = json.dumps({"query": " ".join(rng.sample(prompt.split(), min(5, len(prompt.split()))))})
    turns = [("system", _AGENT), ("user", prompt)]
    truth = Truth("", "", "agent", "agent", {})
    first = Entry(_exchange(turns, query, "search_web", model, at, rng, extra), truth)
    turns = [*turns, ("assistant", f"search_web {query}"), ("tool", _babble(rng))]
    later = at + timedelta(seconds=4)
    return [first, Entry(_exchange(turns, answer or _babble(rng), "", model, later, rng, extra), truth)]


def _babble(rng: random.Random) -> str:
    """Return free text: answers of open prompts are not on record, and only their being free text matters."""
    _, answer = rng.choice(open_prompts_with_answers())
    return answer


@cache
def open_prompts_with_answers() -> list[tuple[str, str]]:
    """Return the open prompts whose answer is on record and longer than a label."""
    return [pair for pair in open_prompts() if len(pair[1]) > 60]


# Bodies


def _exchange(
    turns: Turns,
    answer: str,
    tool: str,
    model: str,
    at: datetime,
    rng: random.Random,
    extra: dict[str, Any] | None = None,
    recorded: Recorded | None = None,
) -> Exchange:
    uses_responses = turns[0][0] == "instructions"
    version = f"{model}-2026-08-06"
    n_prompt = recorded.prompt_tokens if recorded else sum(len(text) for _, text in turns) // 4 + 4 * len(turns)
    n_answer = recorded.completion_tokens if recorded else len(answer) // 4 + 1
    dollars = PRICES[model]
    cost = recorded.cost_usd if recorded else (n_prompt * dollars[0] + n_answer * dollars[1]) / 1e6
    streamed = rng.random() < 0.2
    stream = {"stream": True} if streamed else {}
    if uses_responses:
        request = {"model": model, **dict(turns), **stream}
        part = {"type": "output_text", "text": answer, "annotations": []}
        item = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {"input_tokens": n_prompt, "output_tokens": n_answer, "total_tokens": n_prompt + n_answer}
        response = {"object": "response", "model": version, "status": "completed", "output": [item], "usage": usage}
    else:
        messages = [{"role": role, "content": text} for role, text in turns]
        request = {"model": model, "messages": messages, "temperature": 0, **(extra or {}), **stream}
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer}
        choice = {"index": 0, "message": _message(answer, tool), "finish_reason": "tool_calls" if tool else "stop"}
        response = {"object": "chat.completion", "model": version, "choices": [choice], "usage": usage}
    return Exchange(
        id="new",
        at=at,
        route="/v1/responses" if uses_responses else "/v1/chat/completions",
        request=request,
        response=response,
        model=model,
        answered_by=version,
        prompt_tokens=n_prompt,
        cached_tokens=recorded.cached_tokens if recorded else 0,
        completion_tokens=n_answer,
        cost_usd=cost,
        latency_ms=recorded.latency_ms if recorded else 400 + 20 * n_answer,
    )


def _message(answer: str, tool: str) -> dict[str, Any]:
    if not tool:
        return {"role": "assistant", "content": answer}
    call = {"id": "call_1", "type": "function", "function": {"name": tool, "arguments": answer}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}
