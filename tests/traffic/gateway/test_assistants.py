"""A learnt assistant: calls are made small on three dialects, all else passes, changed functions lead back."""

import copy
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fixtures.assistant import CHAT, MESSAGES, RESPONSES, TOOLS, body_of, called, turns
from fixtures.gateway import OpenUpstreams
from fixtures.takeover import LearntTask
from fixtures.waiting import until_async

from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow, StateRow
from smallfirst.traffic.gateway.assistants import why_not_these
from smallfirst.traffic.gateway.draft_watch import DraftWatch
from smallfirst.traffic.gateway.http import GatewayRequest, GatewayResponse, UpstreamAnswer, read_response
from smallfirst.traffic.gateway.tasks import TakenOverTasks, TaskMatcher
from smallfirst.traffic.wire import ToolCall, read_answer, read_stream

Json = dict[str, Any]
TURNS = turns(25, seed=7)
CALLS = [(asked, answer) for asked, answer in TURNS if answer.get("tool_calls")]
TEXTS = [(asked, answer) for asked, answer in TURNS if not answer.get("tool_calls")]


def asking(path: str, body: Json) -> GatewayRequest:
    return GatewayRequest("POST", path, b"", [], json.dumps(body).encode())


class Application(OpenUpstreams):
    """Asks the assistant as the proxy does; the upstream answers as was recorded, or as it is told."""

    def __init__(self, tasks: TakenOverTasks) -> None:
        self.tasks, self.right = tasks, {json.dumps(asked): answer for asked, answer in TURNS}

    async def ask_about(self, body: Json, path: str = CHAT) -> GatewayResponse | None:
        asked = asking(path, body)
        found = await self.tasks.answer(asked, self)  # type: ignore[arg-type]
        if found is None and asked.watched:
            await self.tasks.passed(asked, self.response(asked))
        return found

    async def ask(self, asked: GatewayRequest) -> UpstreamAnswer:
        return self.response(asked)

    def response(self, asked: GatewayRequest) -> UpstreamAnswer:
        messages = json.dumps(json.loads(asked.body).get("messages"))
        said = self.right.get(messages, {"role": "assistant", "content": "Well."})
        body = {"id": f"up-{uuid.uuid4().hex}", "model": "big-2026", "choices": [{"message": said}]}
        return UpstreamAnswer(200, [], json.dumps(body).encode(), "default", 400.0)


@pytest.fixture
def serve(assistant: LearntTask, tmp_path):
    """An application in front of the assistant, taken over whole; afterwards it has the ledger as it was left."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Application]:
        file = assistant.takeovers
        file.put(file.get("find-table").moved("live", cause="person", why="test", share=1.0))
        tasks = TakenOverTasks(Ledger(tmp_path / "ledger.db"), file, poll_interval_s=0.001)
        application = Application(tasks)
        await tasks.start()
        try:
            yield application
            await until_async(lambda: not any(one.router._tasks for one in tasks.tasks.values()))
        finally:
            await tasks.aclose()
        application.ledger = Ledger(tmp_path / "ledger.db")

    return run


async def test_calls_are_made_small_on_each_dialect_whole_and_streamed(serve):
    async with serve() as app:
        for path in (CHAT, RESPONSES, MESSAGES):
            given = 0
            for i, (asked, answer) in enumerate(CALLS):
                body = body_of(path, asked) | {"stream": i % 2 == 1}
                if (response := await app.ask_about(body, path)) is None:
                    continue
                whole = read_stream(response.body) if i % 2 else json.loads(response.body)
                found = read_answer(path, whole or {})
                function = answer["tool_calls"][0]["function"]
                assert found is not None
                assert found.tool_calls == (ToolCall(function["name"], function["arguments"]),)
                assert (found.text, found.finish_reason) == ("", "tool_calls")
                given += 1
            assert given > 0.8 * len(CALLS), path
    assert not any(row.wrong for row in app.ledger.entries(AuditRow) if row.judged_by == "large")


async def test_text_and_what_is_unsure_pass_and_are_compared(serve, assistant):
    async with serve() as app:
        for asked, _ in TEXTS:
            assert await app.ask_about(body_of(CHAT, asked)) is None
        assert assistant.takeovers.get("find-table").state == "live"  # all begin alike: no evidence of a changed prompt
    rows = app.ledger.entries(LedgerRow)
    assert len(rows) == len(TEXTS)
    assert {row.stage for row in rows} == {"large"}
    (watch,) = app.ledger.shared.under("drafts/find-table/").values()
    [(_, n, n_different)] = DraftWatch.model_validate(watch).hours
    assert (n, n_different) == (len(TEXTS), 0)


def with_tools(body: Json, change: Any) -> Json:
    changed = copy.deepcopy(body)
    change(changed["tools"])
    return changed


def before_last(asked: list[Json], *more: Json) -> list[Json]:
    return [*asked[:1], *more, *asked[1:]]


ASKED, MADE = next((asked, answer) for asked, answer in CALLS if len(asked) == 2)
PLAIN = {path: body_of(path, ASKED) for path in (CHAT, RESPONSES, MESSAGES)}
TWO = called("a", "find_table", place="Roma")
TWO["tool_calls"] += called("b", "open_door")["tool_calls"]
RESULTS = [{"role": "tool", "tool_call_id": id, "content": "{}"} for id in ("b", "a")]
PASSES: dict[str, tuple[str, Json]] = {
    "another choice": (CHAT, PLAIN[CHAT] | {"tool_choice": "none"}),
    "another function": (
        CHAT,
        PLAIN[CHAT] | {"tool_choice": {"type": "function", "function": {"name": "cancel_table"}}},
    ),
    "another allowed function": (
        RESPONSES,
        PLAIN[RESPONSES]
        | {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "cancel_table"}],
            }
        },
    ),
    "an answer that is kept": (RESPONSES, PLAIN[RESPONSES] | {"store": None}),
    "a conversation at the provider": (RESPONSES, PLAIN[RESPONSES] | {"previous_response_id": "resp_1"}),
    "thinking": (MESSAGES, PLAIN[MESSAGES] | {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
    "several results out of order": (CHAT, body_of(CHAT, before_last(ASKED, TWO, *RESULTS))),
    "media": (CHAT, body_of(CHAT, before_last(ASKED, {"role": "user", "content": [{"type": "image_url"}]}))),
    "a higher temperature": (CHAT, PLAIN[CHAT] | {"temperature": 1.5}),
    "few tokens": (CHAT, PLAIN[CHAT] | {"max_completion_tokens": 2}),
}
MAY = ({"tool_choice": "auto"}, {"tool_choice": "required"}, {"parallel_tool_calls": False}, {"temperature": 0.7})
NAMED = {"tool_choice": {"type": "function", "function": {"name": "find_table"}}}


async def test_what_asks_for_another_answer_passes(serve):
    async with serve() as app:
        for more in ({}, *MAY, NAMED):
            assert await app.ask_about(PLAIN[CHAT] | more), more
        described = with_tools(PLAIN[CHAT], lambda tools: tools[0]["function"].update(description="Look for a table"))
        assert await app.ask_about(described)
        for what, (path, body) in PASSES.items():
            assert await app.ask_about(PLAIN[path], path), path
            assert await app.ask_about(body, path) is None, what


@pytest.mark.parametrize("stream", [False, True])
async def test_the_id_of_a_small_answer_never_reaches_the_provider(serve, stream):
    history = next(asked for asked, _ in CALLS if any(message["role"] == "assistant" for message in asked))
    body = body_of(RESPONSES, history) | {"store": None, "stream": stream}
    async with serve() as app:
        given = await app.ask_about(body, RESPONSES)
        made = read_response(given.headers, given.body)
        [item] = made["output"]
        result = {"type": "function_call_output", "call_id": item["call_id"], "output": "[]"}
        going_on = {name: value for name, value in body.items() if name != "input"} | {"input": [result]}
        for tenant, known in (("default", True), ("another", False)):
            asked = asking(RESPONSES, going_on | {"previous_response_id": made["id"]})
            asked.tenant = tenant
            await app.tasks.answer(asked, app)
            sent = json.loads(asked.body)
            assert ("previous_response_id" in sent) is not known
            item.pop("id", None)
            assert sent["input"] == ([*body["input"], item, result] if known else [result])


async def test_what_was_redacted_beside_the_call_does_not_matter(serve):
    asked = copy.deepcopy(ASKED)
    asked[0]["content"] += " The guest is ann@example.com."
    async with serve() as app:
        task = app.tasks.tasks["find-table"]
        known = task.source.assistant.model_copy(
            update={"instructions": (f"{task.source.assistant.instructions[0]} The guest is [EMAIL].",)}
        )
        app.tasks._matcher = TaskMatcher({"find-table": task.source.model_copy(update={"assistant": known})})
        answer = await app.ask_about(body_of(CHAT, asked))
    assert answer is not None
    assert b"find_table" in answer.body


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("find_table", {"place": "Roma", "people": "2"}, ""),
        ("find_table", {"place": "[EMAIL]", "people": "2"}, "an argument was redacted"),
        ("find_table", {"place": "Roma"}, "find_table: 'people' is a required property"),
        ("find_table", {"place": "Roma", "people": 2}, "find_table: 2 is not of type 'string'"),
        ("open_door", {}, "it has no function open_door"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_call_that_the_request_does_not_allow_is_not_given(path, name, arguments, why):
    assert why_not_these(PLAIN[path], [ToolCall(name, json.dumps(arguments))]) == why


async def test_changed_functions_lead_back_at_once(serve, assistant):
    def change(tools: list[Json]) -> None:
        tools[0]["function"]["parameters"]["properties"].update(day={"type": "string"})

    said = "the application's functions have changed: find_table.day is new"
    async with serve() as app:
        assert await app.ask_about(PLAIN[CHAT])
        assert await app.ask_about(with_tools(PLAIN[CHAT], change)) is None
        taken = assistant.takeovers.get("find-table")
        assert (taken.state, taken.cause, taken.why) == ("stepped back", "prompt", said)
        assert await app.ask_about(PLAIN[CHAT]) is None
    assert app.ledger.entries(StateRow)[-1].why == said


async def test_changed_instructions_lead_back_when_they_stay(serve, assistant):
    others = [{"role": "system", "content": "You book tables and never say no."}, *ASKED[1:]]
    async with serve() as app:
        assert await app.ask_about(body_of(CHAT, others)) is None
        assert assistant.takeovers.get("find-table").state == "live"
        for _ in range(40):
            await app.ask_about(body_of(CHAT, others))
        assert assistant.takeovers.get("find-table").state == "stepped back"


async def test_other_tools_are_no_evidence(serve, assistant):
    others = [{"type": "function", "function": {**TOOLS[0]["function"], "name": "look"}}]
    async with serve() as app:
        body = body_of(CHAT, [{"role": "system", "content": "You drive."}, *ASKED[1:]], others)
        assert await app.ask_about(body) is None
        assert assistant.takeovers.get("find-table").state == "live"
