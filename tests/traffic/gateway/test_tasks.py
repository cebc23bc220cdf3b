"""Behind a proxy: certified drafts are answered in the upstream's format, all else passes, and changes lead back."""

import gc
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any, get_args, get_type_hints

import pytest
from fixtures.gateway import OpenUpstreams
from fixtures.takeover import SYSTEM, TEACHER, LearntTask, cases
from fixtures.traffic import template
from fixtures.waiting import until_async
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params
from openai.types.shared_params import Reasoning

from smallfirst.base.records import fingerprint
from smallfirst.data.dataset import fold_text
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow, ShadowRow, StateRow
from smallfirst.traffic.gateway.draft_watch import DraftWatch
from smallfirst.traffic.gateway.http import GatewayRequest, GatewayResponse, UpstreamAnswer
from smallfirst.traffic.gateway.live_task import Ruling
from smallfirst.traffic.gateway.tasks import _SHAPES, TakenOverTasks, TaskMatcher, why_not, why_not_this
from smallfirst.traffic.task_source import AnswerFormat, TaskSource, TaskTemplate, Teacher, TemplateSlot
from smallfirst.traffic.wire import ModelAnswer, Prompt, ToolCall, Turn, read_prompt

CASES = cases(60, seed=5)
UNCERTAIN = "card loan flight"


def request(text: str, *, system: str = SYSTEM, **more: Any) -> GatewayRequest:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Message: {text}"}]
    body = {"model": "big", "messages": messages, "temperature": 0, **more}
    return GatewayRequest("POST", "/v1/chat/completions", b"", [], json.dumps(body).encode())


class Application(OpenUpstreams):
    """Asks the tasks as the proxy does, with an upstream that always knows the right queue."""

    def __init__(self, tasks: TakenOverTasks) -> None:
        self.tasks, self.model, self.format, self.again = tasks, TEACHER, "Queue: {}", 0
        self.finished = "stop"
        self.right = dict(CASES)

    async def ask_about(self, text: str, **more: Any) -> GatewayResponse | None:
        asked = request(text, **more)
        found = await self.tasks.answer(asked, self)  # type: ignore[arg-type]
        if found is None and asked.watched:
            await self.tasks.passed(asked, self.response(asked))
        return found

    async def ask(self, asked: GatewayRequest) -> UpstreamAnswer:
        self.again += 1
        assert "stream" not in json.loads(asked.body)
        return self.response(asked)

    def response(self, asked: GatewayRequest) -> UpstreamAnswer:
        text = json.loads(asked.body)["messages"][-1]["content"].removeprefix("Message: ")
        said = {"role": "assistant", "content": self.format.format(self.right.get(text, "cards"))}
        choice = {"index": 0, "message": said, "finish_reason": self.finished}
        usage = {"prompt_tokens": 40, "completion_tokens": 3}
        body = {"id": f"up-{uuid.uuid4().hex}", "model": self.model, "choices": [choice], "usage": usage}
        return UpstreamAnswer(200, [], json.dumps(body).encode(), "default", 400.0)


@pytest.fixture
def serve(learnt: LearntTask, tmp_path):
    """An application in front of the learnt task with a live share; afterwards it has the ledger as it was left."""

    @asynccontextmanager
    async def run(share: float) -> AsyncIterator[Application]:
        file = learnt.takeovers
        if share:
            file.put(file.get("queues").moved("live", cause="person", why="test", share=share))
        tasks = TakenOverTasks(Ledger(tmp_path / "ledger.db"), file, poll_interval_s=0.001)
        application = Application(tasks)
        await tasks.start()
        assert set(tasks.tasks) == {"queues"}
        try:
            yield application
        finally:
            await tasks.aclose()
        application.ledger = Ledger(tmp_path / "ledger.db")

    return run


async def test_certified_drafts_are_answered_in_the_known_format(serve):
    async with serve(1.0) as app:
        found = [(label, await app.ask_about(text, max_tokens=20)) for text, label in CASES]
        assert await app.ask_about(CASES[0][0], logprobs=True) is None
        assert await app.ask_about(UNCERTAIN) is None
    small = [(label, response) for label, response in found if response is not None]
    assert len(small) > 30
    for label, response in small:
        body = json.loads(response.body)
        assert body["choices"][0]["message"]["content"] == f"Queue: {label}"
        assert body["model"] == TEACHER
        assert (b"x-smallfirst-task", b"queues") in response.headers
    rows = app.ledger.entries(LedgerRow)
    assert sum(row.stage != "large" for row in rows) == len(small)
    assert {row.stage for row in rows if not row.certified} == {"large"}
    assert json.loads(small[0][1].body)["id"] in {row.id for row in rows}
    (watch,) = app.ledger.shared.under("drafts/queues/").values()
    assert sum(n for _, n, _ in DraftWatch.model_validate(watch).hours) == len(CASES) + 1 - len(small)


async def test_an_empty_case_is_the_upstreams_and_says_nothing_of_the_task(serve):
    async with serve(1.0) as app:
        for text, known in (("", False), (" \n", False), (UNCERTAIN, True)):
            asked = request(text)
            assert await app.tasks.answer(asked, app) is None
            assert (asked.watched is not None) is known
            assert (app.tasks.find(read_prompt(asked.path, asked.json())) is not None) is known


async def test_nothing_is_kept_of_a_request_whose_answer_never_comes(serve):
    async with serve(0.0) as app:
        for text, _ in CASES[:5]:
            assert await app.tasks.answer(request(text), app) is None
        gc.collect()
        assert not [one for one in gc.get_objects() if isinstance(one, Ruling)]


async def test_an_upstream_that_repeats_its_ids_loses_no_answer(serve, caplog):
    async with serve(0.0) as app:
        written = app.response
        app.response = lambda asked: written(asked)._replace(
            body=written(asked).body.replace(b'"id": "', b'"id": "same", "_": "')
        )
        for text, _ in CASES[:5]:
            assert await app.ask_about(text) is None
    ids = [row.id for row in app.ledger.entries(LedgerRow)]
    assert len(ids) == 5
    assert {id.partition("#")[0] for id in ids} == {"same"}
    assert not [record for record in caplog.records if record.exc_info]


async def test_while_the_ledger_takes_no_row_the_upstream_answers_and_a_lost_row_is_named(serve, caplog):
    async with serve(1.0) as app:
        ledger, queues = app.tasks._ledger, app.tasks.tasks["queues"]
        text = next(iter([text for text, _ in CASES[:9] if await app.ask_about(text) is not None]))
        for is_failing in (True, False):
            await until_async(lambda: not queues._background._running and not queues.router._tasks)
            with closing(ledger.database.writer.raw_connection()) as connection:
                connection.cursor().execute(f"PRAGMA query_only = {is_failing}")
            answer = await app.ask_about(text)
            assert (answer is not None) is is_failing  # the first is given before it is known
            await until_async(lambda is_failing=is_failing: ledger.is_failing is is_failing)
            assert (await app.ask_about(text) is None) is is_failing
            id = "" if answer is None else json.loads(answer.body)["id"]
            await until_async(lambda id=id: f"no row of answer {id}" in caplog.text)
        await until_async(lambda: not queues.router._tasks)
    assert "not audited, " in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


async def test_in_shadow_everything_passes_and_drafts_are_compared(serve):
    async with serve(0.0) as app:
        for text, _ in CASES:
            assert await app.ask_about(text) is None
        await until_async(lambda: not app.tasks.tasks["queues"].router._tasks)
    audits = app.ledger.entries(AuditRow)
    assert len(audits) > 30
    assert not any(audit.wrong for audit in audits)
    assert {row.answered_by for row in app.ledger.entries(LedgerRow)} == {TEACHER}


async def test_in_shadow_only_what_could_be_learnt_from_counts_for_the_second_look(serve, learnt):
    others = cases(40, seed=6)
    uncounted = {"format": "I would say {}", "model": "big-2026-06-01", "finished": "length"}

    async with serve(0.0) as app:
        for text in [UNCERTAIN, *(text for text, _ in [*CASES, *CASES[:5], *cases(240)[:9]])]:
            await app.ask_about(text)
        for (name, value), texts in zip(uncounted.items(), (others[:9], others[9:18], others[18:27]), strict=True):
            before = getattr(app, name)
            setattr(app, name, value)
            for text, _ in texts:
                await app.ask_about(text)
            setattr(app, name, before)
        file = learnt.takeovers
        file.put(file.get("queues").moved("stepped back", cause="prompt", why="test"))
        await app.ask_about(CASES[0][0])  # sees that the file has changed
        await until_async(lambda: app.tasks.tasks["queues"].taken.state == "stepped back")
        await app.ask_about(others[30][0])
        await until_async(lambda: not app.tasks.tasks["queues"].router._tasks)
    rows = app.ledger.entries(ShadowRow)
    known = {fold_text(text) for text, _ in cases(240)}
    new = {fold_text(text) for text in (UNCERTAIN, *(text for text, _ in CASES))} - known
    assert {row.text for row in rows} == {fingerprint(text) for text in new}
    assert len(rows) == len(new) > 50
    [uncertain] = [row for row in rows if row.confidence < 0.9]  # whatever the draft
    assert uncertain.text == fingerprint(fold_text(UNCERTAIN))
    assert not any(row.wrong for row in rows if row is not uncertain)


async def test_another_model_upstream_leads_back_at_once(serve, learnt):
    async with serve(1.0) as app:
        app.model = "big-2026-06-01"
        assert await app.ask_about(UNCERTAIN) is None
        assert await app.ask_about(CASES[0][0]) is None
    taken = learnt.takeovers.get("queues")
    assert (taken.state, taken.cause, taken.share) == ("stepped back", "model", 1.0)
    assert "big-2026-06-01" in taken.why
    assert [row.after for row in app.ledger.entries(StateRow) if not row.certificate] == ["stepped back"]


async def test_audits_that_break_the_promise_lead_back(serve, learnt):
    async with serve(1.0) as app:
        app.right = dict.fromkeys(app.right, "another queue")  # the model has changed behind its name
        asked = 0
        for text, _ in CASES:
            asked += await app.ask_about(text, stream=True) is not None
            await until_async(lambda: not app.tasks.tasks["queues"].router._tasks)
        assert 3 < asked == app.again < 20
    taken = learnt.takeovers.get("queues")
    assert (taken.state, taken.cause) == ("stepped back", "guarantee")
    assert "does not hold" in taken.why
    audits = app.ledger.entries(AuditRow)
    assert all(audit.wrong for audit in audits[:3])


async def test_a_share_is_drawn_and_a_command_is_followed_while_it_runs(serve, learnt):
    async with serve(0.5) as app:
        small = [await app.ask_about(CASES[0][0]) is not None for _ in range(200)]
        assert 60 < sum(small) < 140
        learnt.takeovers.put(learnt.takeovers.get("queues").moved("shadow", cause="person", why="", share=0.0))
        await app.ask_about(CASES[0][0])  # sees that the file has changed
        await until_async(lambda: app.tasks.tasks["queues"].taken.state == "shadow")
        assert await app.ask_about(CASES[0][0]) is None


INTENTS = "You sort messages of a bank's customers. Answer with one of these intents: lost card, refund, pin."


def source(name: str, *turns: tuple[str, ...], models: tuple[str, ...] = (), **more: str) -> TaskSource:
    wording = TaskTemplate(template=template(*turns, **more), slots=(TemplateSlot(name="text"),))
    form, teacher = AnswerFormat(kind="label"), Teacher(model="gpt-large")
    return TaskSource(name=name, templates=(wording,), answer_format=form, models=models, teacher=teacher)


def prompt(*turns: tuple[str, str], model: str = "gpt", tools: str = "") -> Prompt:
    return Prompt(model, tuple(Turn(*turn) for turn in turns), tools=tools)


MATCHER = TaskMatcher(
    {
        "intents": source("intents", ("system", INTENTS), ("user", "", ""), models=("gpt",)),
        "mood": source("mood", ("user", "Is this message of a customer friendly or angry?\n", "\nAnswer:")),
    }
)


def test_the_wording_decides_and_gives_the_case_and_another_model_tools_or_turns_are_not_the_task():
    asked = prompt(("system", INTENTS), ("user", "my card is gone"))
    assert MATCHER.find(asked) == ("intents", "my card is gone", AnswerFormat(kind="label"))
    mood = prompt(("user", "Is this message of a customer friendly or angry?\nno way\nAnswer:"))
    assert MATCHER.find(mood) == ("mood", "no way", AnswerFormat(kind="label"))
    turns = (("system", INTENTS), ("user", "my card is gone"))
    assert MATCHER.find(prompt(*turns, model="gpt-mini")) is None
    assert MATCHER.find(prompt(*turns, tools="[{}]")) is None
    assert MATCHER.find(prompt(*turns, ("assistant", "lost card"), ("user", "why?"))) is None


def test_a_changed_wording_resembles_its_task_and_an_open_request_none():
    changed = prompt(("system", INTENTS.replace("pin", "pin, other") + " Think first."), ("user", "my card is gone"))
    assert MATCHER.find(changed) is None
    assert MATCHER.near(changed) == "intents"
    assert MATCHER.near(changed._replace(model="gpt-mini")) is None
    assert MATCHER.near(prompt(("user", "Write a poem about a customer of a bank"))) is None
    assert TaskMatcher({}).near(changed) is None


_VOCABULARY = [f"w{n}" for n in range(14)]
_TEXTS = st.lists(st.sampled_from(_VOCABULARY), min_size=3, max_size=12).map(" ".join)


@given(st.lists(st.tuples(_TEXTS, st.sampled_from([(), ("gpt",), ("other",)])), max_size=8), _TEXTS)
def test_the_nearest_task_is_that_of_a_comparison_with_every_wording(
    wordings: list[tuple[str, tuple[str, ...]]], text: str
) -> None:
    named = {f"task-{n}": (set(words.split()), models) for n, (words, models) in enumerate(wordings)}
    shares = [
        (len(words & set(text.split())) / len(words), name)
        for name, (words, models) in named.items()
        if len(words) >= 5 and (not models or "gpt" in models)
    ]
    share, nearest = max(shares, default=(0.0, ""))
    sources = {
        f"task-{n}": source(f"task-{n}", ("user", words, ""), models=models)
        for n, (words, models) in enumerate(wordings)
    }
    assert TaskMatcher(sources).near(prompt(("user", text))) == (nearest if share >= 0.7 else None)


def test_of_a_thousand_tasks_only_those_that_share_a_word_are_looked_at() -> None:
    wordings = {f"task-{n}": [f"word{n}x{i}" for i in range(40)] for n in range(1000)}
    matcher = TaskMatcher({name: source(name, ("user", " ".join(words), "")) for name, words in wordings.items()})
    looked_at: list[str] = []

    class Counted(dict[str, Any]):
        def get(self, word: str, default: Any = None) -> Any:
            found = super().get(word, default)
            looked_at.extend(matcher._long[at][0] for at in (() if found is None else found))
            return found

    matcher._with_word = Counted(matcher._with_word)
    assert matcher.near(prompt(("user", " ".join(["new", *wordings["task-7"][:30]])))) == "task-7"
    assert looked_at == ["task-7"] * 30


def test_a_typed_question_follows_its_own_wording_and_resembles_no_other():
    def asked(question: str) -> Prompt:
        questions = [{"type": "predicate", "instructions": question}]
        found = read_prompt("/v1/decisions", {"model": "gpt", "input": "My card", "questions": questions})
        assert found is not None
        return found

    first = asked("The customer writes about a card.")
    turns = (("system", first.turns[0].text), ("user", "", ""))
    matcher = TaskMatcher({"card": source("card", *turns, response_format=first.response_format)})
    assert matcher.find(first) == ("card", "My card", AnswerFormat(kind="label"))
    other = asked("The customer writes about a fee.")
    assert matcher.find(other) is None
    assert matcher.near(other) is None
    assert matcher.near(prompt(("user", first.turns[0].text + " Think first."))) is None


def test_only_a_prompt_that_begins_like_a_wording_is_redacted():
    assert MATCHER.may_find(prompt(("system", INTENTS), ("user", "call 030 1234567")))
    assert not MATCHER.may_find(prompt(("user", INTENTS)))
    assert not MATCHER.may_find(prompt(("system", "Another application."), ("user", "hello")))
    mailed = TaskMatcher({"mails": source("mails", ("user", "Mail to [EMAIL], urgent or not?\n", ""))})
    assert mailed.may_find(prompt(("user", "Mail to ada@example.com, urgent or not?\nnow!")))


# Whether an answer can stand for the upstream's

ASKED_CHAT = {"model": "m", "messages": [], "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(("changes", "why"), [
    ({}, ""), ({"n": 1, "logprobs": False, "web_search_options": None}, ""),
    ({"n": 2}, "it asks for n: 2"), ({"logprobs": True}, "it asks for logprobs: True"),
    ({"store": True}, "it asks for store: True"), ({"web_search_options": {}}, "it sets web_search_options"),
    ({"n": True}, "it asks for n: True"), ({"logprobs": 0}, "it asks for logprobs: 0"),
    ({"temperature": 99}, "it asks for temperature: 99"),
    ({"temperature": "hot"}, "it asks for temperature: hot"), ({"max_tokens": "1"}, "it asks for max_tokens: 1"),
    ({"max_tokens": 0}, "it asks for max_tokens: 0"), ({"stream": "false"}, "it asks for stream: false"),
    ({"Model": "m"}, "it sets Model"),
    ({"messages": [{"role": "user", "content": "a", "audio": {"id": "b"}}]}, "it sets messages"),
])  # fmt: skip
def test_a_setting_that_asks_for_more_passes_the_request_on(changes: dict[str, Any], why: str) -> None:
    assert why_not("chat/completions", ASKED_CHAT | changes, kind="label") == why


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
BIG = 2**63
CHAT = ("chat/completions", {"model": "m", "messages": []})
RESPONSES = ("responses", {"model": "m", "input": "hello"})
MESSAGES = ("messages", {"model": "m", "messages": [], "max_tokens": 9})
ACCEPTED = [
    *((*CHAT, {"seed": value}) for value in (0, -1, BIG - 1, -BIG, None)),
    *((*CHAT, {"service_tier": value}) for value in ("auto", "default", "flex", "scale", "priority", "fast", None)),
    *((*CHAT, {"reasoning_effort": value}) for value in ("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    *((*CHAT, {"verbosity": value}) for value in ("low", "medium", "high")),
    *((*CHAT, {"stop": value}) for value in ("\n", ["a"], ["a", "b", "c", "d"], None)),
    *((*CHAT, {"max_tokens": value}) for value in (1, 4096, None)),
    *((*CHAT, {"temperature": value}) for value in (0, 0.5, 1, 1.0)),
    *((*CHAT, {"top_p": value}) for value in (0, 0.5, 1)),
    *((*CHAT, {"metadata": value}) for value in ({}, {"k" * 64: "v" * 512}, {str(i): "" for i in range(16)})),
    *((*CHAT, {"prompt_cache_retention": value}) for value in ("in_memory", "24h")),
    *((*CHAT, {name: "x" * 64}) for name in ("safety_identifier", "prompt_cache_key", "user")),
    *((*CHAT, {"presence_penalty": value}) for value in (-2, 0)),
    (*CHAT, {"parallel_tool_calls": False, "tools": [TOOL]}),
    (*CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
    (*CHAT, {"user": "\U0001f600"}),
    *((*RESPONSES, {"max_output_tokens": value}) for value in (16, 500)),
    *((*RESPONSES, {"reasoning": {"effort": value}}) for value in ("none", "high", None)),
    *((*RESPONSES, {"truncation": value}) for value in ("auto", "disabled")),
    *((*RESPONSES, {"service_tier": value}) for value in ("ultrafast", "flex")),
    (*RESPONSES, {"tools": [], "parallel_tool_calls": True, "store": False, "include": []}),
    *((*MESSAGES, {"temperature": value}) for value in (0, 1)),
    *((*MESSAGES, {"service_tier": value}) for value in ("auto", "standard_only")),
    (*MESSAGES, {"metadata": {"user_id": "u"}}),
    (*MESSAGES, {"top_k": 5, "stop_sequences": ["a", "b", "c", "d", "e"]}),
    (*MESSAGES, {"tool_choice": {"type": "auto"}}),
]  # fmt: skip
REFUSED = [
    *((*CHAT, {"seed": value}) for value in (BIG, -BIG - 1, 1.5, "1", True)),
    *((*CHAT, {"service_tier": value}) for value in ("gold", "", "AUTO", "ultrafast", 1)),
    *((*CHAT, {"reasoning_effort": value}) for value in ("extreme", "", "Low", 3)),
    *((*CHAT, {"verbosity": value}) for value in ("loud", "", 0)),
    *((*CHAT, {"stop": value}) for value in ("", [], [""], ["a", ""], list("abcde"), 7)),
    *((*CHAT, {name: value}) for name in ("max_tokens", "max_completion_tokens") for value in (0, -1, BIG, 1.5)),
    *((*CHAT, {"temperature": value}) for value in (-0.1, 2.1, float("nan"), "1")),
    *((*CHAT, {"top_p": value}) for value in (-0.1, 1.1)),
    *((*CHAT, {name: value}) for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 2.1)),
    *((*CHAT, {"metadata": value}) for value in ({"k": 1}, {"k" * 65: ""}, {"k": "v" * 513}, [])),
    (*CHAT, {"metadata": {str(i): "" for i in range(17)}}),
    *((*CHAT, {"n": value}) for value in (0, -1, 200)),
    *((*CHAT, {"logit_bias": value}) for value in ({"1": 101}, [])),
    *((*CHAT, {name: "x" * 65}) for name in ("safety_identifier", "prompt_cache_key")),
    (*CHAT, {"prompt_cache_retention": "1h"}),
    (*CHAT, {"model": ""}),
    (*CHAT, {"tools": []}),
    (*CHAT, {"parallel_tool_calls": True}),
    (*CHAT, {"stream_options": {"include_usage": True}}),
    (*CHAT, {"stream": True, "stream_options": {"other": True}}),
    (*CHAT, {"max_tokens": 5, "max_completion_tokens": 5}),
    (*CHAT, {"user": "\ud800"}),
    (*CHAT, {"messages": [{"role": "user", "content": "half \udc00"}]}),
    (*CHAT, {"messages": [{"role": "clown", "content": "a"}]}),
    *((*RESPONSES, {"max_output_tokens": value}) for value in (15, 0, BIG)),
    *((*RESPONSES, {"reasoning": value}) for value in ({"effort": "extreme"}, {"effort": ""}, "high")),
    *((*RESPONSES, {name: value}) for name, value in (("seed", 1), ("stop", "a"), ("n", 1), ("max_tokens", 20))),
    *((*RESPONSES, {"truncation": value}) for value in ("none", True)),
    (*RESPONSES, {"input": "\ud800"}),
    *((*MESSAGES, {"temperature": value}) for value in (1.1, -1)),
    *((*MESSAGES, {"service_tier": value}) for value in ("default", "flex")),
    *((*MESSAGES, {name: value}) for name, value in (("seed", 1), ("stop", "a"), ("user", "u"), ("n", 1))),
    *((*MESSAGES, {name: value}) for name, value in (("top_k", -1), ("stop_sequences", [""]), ("max_tokens", 0))),
    (*MESSAGES, {"metadata": {"other": "u"}}),
    (*MESSAGES, {"tool_choice": "auto"}),
    (*MESSAGES, {"max_tokens": None}),
]  # fmt: skip


def test_what_the_provider_would_refuse_passes_and_what_it_accepts_does_not() -> None:
    assert min(len(ACCEPTED), len(REFUSED)) >= 60
    assert [case for case in REFUSED if not why_not(case[0], case[1] | case[2])] == []
    found = [(case[0], case[2], why_not(case[0], case[1] | case[2])) for case in ACCEPTED]
    assert [case for case in found if case[2]] == []
    assert why_not("messages", {"model": "m", "messages": []}) == "it sets no max_tokens"


def test_values_and_names_of_settings_are_those_of_the_providers_own_client() -> None:
    chat = get_type_hints(completion_create_params.CompletionCreateParamsBase)
    responses = get_type_hints(response_create_params.ResponseCreateParamsBase)
    for route, known in (("chat/completions", chat), ("responses", responses)):
        fields = _SHAPES[route].model_fields
        assert set(fields) - {"stream"} <= set(known)
        for name in {"service_tier", "reasoning_effort", "verbosity", "prompt_cache_retention", "truncation"} & set(
            fields
        ):
            assert literals(fields[name].annotation) == literals(known[name]), name
    effort = literals(get_type_hints(Reasoning)["effort"])
    assert literals(_SHAPES["responses"].model_fields["reasoning"].annotation) - {"effort"} == effort


def literals(kind: Any) -> set[str]:
    """The texts that a type allows, wherever they stand in it."""
    return {text for part in get_args(kind) for text in ({part} if isinstance(part, str) else literals(part))}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stop": [" card"]}, "a stop sequence is in the answer"),
        ({"max_tokens": 3}, "the answer may be longer than the request allows"),
        ({"max_completion_tokens": 4}, ""),
    ],
)
def test_an_answer_that_breaks_a_limit_is_not_given(changes: dict[str, Any], why: str) -> None:
    assert why_not_this(ASKED_CHAT | changes, ModelAnswer("lost card !")) == why


@pytest.mark.parametrize("setting", [{"temperature": 1.5}, {"presence_penalty": 0.5}, {"frequency_penalty": 1}])
def test_an_answer_that_is_written_is_the_upstreams_where_a_less_likely_one_is_wanted(setting: dict[str, Any]) -> None:
    (name, value), usual = *setting.items(), {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0, "seed": 4}
    assert why_not("chat/completions", ASKED_CHAT | setting) == f"it asks for {name}: {value}"
    assert why_not("chat/completions", ASKED_CHAT | setting, kind="label") == ""
    assert why_not("chat/completions", ASKED_CHAT | usual) == ""


@pytest.mark.parametrize(
    ("choice", "called", "why"),
    [
        (None, ["route"], ""),
        ("auto", [], ""),
        ("none", [], ""),
        ("none", ["route"], "it forbids tools, and the answer calls one"),
        ({"type": "none"}, ["route"], "it forbids tools, and the answer calls one"),
        ("required", [], "it asks for a call of a tool"),
        ("required", ["route"], ""),
        ({"type": "any"}, [], "it asks for a call of a tool"),
        ({"type": "function", "function": {"name": "route"}}, ["route"], ""),
        ({"type": "function", "function": {"name": "other"}}, ["route"], "it asks for a call of other"),
        ({"type": "function", "name": "route"}, ["route"], ""),
        ({"type": "tool", "name": "other"}, ["route"], "it asks for a call of other"),
    ],
)
def test_an_answer_that_breaks_the_choice_of_tools_is_not_given(choice: Any, called: list[str], why: str) -> None:
    answer = ModelAnswer("lost", tuple(ToolCall(name, "{}") for name in called))
    assert why_not_this(ASKED_CHAT | {"tool_choice": choice}, answer) == why
