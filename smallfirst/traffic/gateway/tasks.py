"""All learnt tasks behind one proxy: it follows `takeovers.json`, finds the task of a request, and answers it small."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
from pydantic import Field

from smallfirst.data.conversations import to_text
from smallfirst.data.redaction import redact_body
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.pricing import PriceBook
from smallfirst.serving.wire import has_text, raw_headers, system_fingerprint
from smallfirst.traffic.assistant import read_request
from smallfirst.traffic.gateway.access import Credentials, read_head
from smallfirst.traffic.gateway.assistants import (
    CONVERSATION,
    AssistantIndex,
    GivenResponses,
    why_continued,
    why_not_these,
)
from smallfirst.traffic.gateway.http import (
    BackgroundTasks,
    GatewayRequest,
    GatewayResponse,
    TaskRequest,
    UpstreamAnswer,
    read_response,
)
from smallfirst.traffic.gateway.upstreams import UpstreamFailed, Upstreams
from smallfirst.traffic.task_source import AnswerFormat, TakeOver, TakeOvers, TaskSource, TaskTemplate
from smallfirst.traffic.wire import (
    DIALECTS,
    Json,
    ModelAnswer,
    Prompt,
    Reply,
    compact,
    new_id,
    question_of,
    read_prompt,
    write_reply,
)

if TYPE_CHECKING:
    from smallfirst.traffic.gateway.live_task import LiveTask, Ruling

_log = logging.getLogger("smallfirst.takeover")
POLL_INTERVAL_S = 1.0
"""Seconds between two looks at `takeovers.json`."""


class _Missed(NamedTuple):
    """A request that resembles a task's wording and does not follow it."""

    task: LiveTask
    tenant: str
    changed: str = ""
    """How an assistant's functions have changed."""


class TakenOverTasks:
    """What a proxy asks before it passes a request on."""

    def __init__(
        self,
        ledger: Ledger,
        file: TakeOvers | None = None,
        *,
        prices: PriceBook | None = None,
        poll_interval_s: float = POLL_INTERVAL_S,
        one_tenant: Callable[[], bool] = lambda: True,
    ) -> None:
        """Follow the file, by default that of the state folder; `prices` are the upstream's. Closes the ledger.

        `one_tenant` returns True if there is one at most, whose evidence then counts for all.
        """
        self._prices, self._one_tenant = prices, one_tenant
        self.credentials = Credentials(ledger.shared)
        self._ledger, self._file, self._interval_s = ledger, file or TakeOvers(), poll_interval_s
        self.tasks: dict[str, LiveTask] = {}
        self._matcher = TaskMatcher({})
        self._failed: dict[str, TakeOver] = {}
        self._given = GivenResponses()
        self._background = BackgroundTasks()
        self._stamp = 0
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what the file names; a task that cannot be loaded is logged, and its requests pass."""
        self._stamp = self._file.stamp
        await self.credentials.start()
        self._use(await asyncio.to_thread(self._loaded))
        self._following = asyncio.create_task(self._follow())

    async def answer(self, request: GatewayRequest, upstreams: Upstreams) -> GatewayResponse | None:
        """Return the small model's certified answer, or None: the request is passed on."""
        path, route = request.path, _answered_route(request)
        if route == "responses":
            self._given.complete(request)
        raw = request.json()
        if route is None or raw is None or not self.tasks:
            return None
        prompt = read_prompt(path, raw)
        if prompt is None:
            return None
        found = self._looked_up(request, raw, prompt)
        target = upstreams.own_target(request, prompt.model) if found else None
        if found is None or target is None:
            return None
        if isinstance(found, _Missed):
            request.watched = found
            return None
        task, kind = self.tasks[found.task], found.answer_format.kind
        if why_not(route, raw, kind=kind) or not has_text(found.text):
            return None  # of an empty case nothing is known
        again, may_ask = _asking_again(request, upstreams), upstreams.accepts(request, target, prompt.model)
        asked = TaskRequest(
            request.id, path, raw, found.text, again, found.answer_format, request.tenant, may_ask=may_ask
        )
        ruling = await task.rule(asked)
        if ruling.small is None or ruling.answer is None or why_not_this(raw, ruling.answer, kind=kind):
            request.watched = ruling
            return None
        reply = await _reply(route, ruling._replace(asked=asked._replace(id=new_id(route))))
        if route == "responses" and raw.get("store") is not False:
            self._given.keep(request, read_response(reply.headers, reply.body) or {})
        return reply

    def _looked_up(self, request: GatewayRequest, raw: Json, prompt: Prompt) -> Match | _Missed | None:
        """Return the task of a request with its case, empty if it cannot be told, or the task that it resembles."""
        matcher, assistants = self._matcher, self._matcher.assistants
        asked = read_request(request.path, redact_body(raw)) if assistants and raw.get("tools") else None
        if asked and assistants and (found := assistants.find(asked, prompt.model)):
            task = self.tasks[found.task]
            if found.changed is not None:
                return _Missed(task, request.tenant, found.changed)
            return Match(found.task, to_text(asked.turns), task.source.answer_format)
        body = raw
        if matcher.may_find(prompt):
            body = redact_body(raw)
            prompt = read_prompt(request.path, body) or prompt
        if match := matcher.find(prompt):  # a redacted value must not stand in an answer that is written
            return match if body == raw or match.answer_format.kind == "label" else match._replace(text="")
        near = matcher.near(prompt)
        return _Missed(self.tasks[near], request.tenant) if near else None

    def find(self, prompt: Prompt) -> tuple[LiveTask, Match] | None:
        """Return the task that a prompt follows, and the case that it asks about."""
        found = self._matcher.find(prompt)
        return (self.tasks[found.task], found) if found and has_text(found.text) else None

    async def passed(self, request: GatewayRequest, answer: UpstreamAnswer) -> None:
        """Compare what the upstream answered to a request of a task with the small model's draft."""
        ruling: Ruling | _Missed | None = request.watched
        if ruling is None or not 200 <= answer.status < 300:
            return  # a request that was refused is no evidence of anything
        if isinstance(ruling, _Missed):
            ruling.task.missed(ruling.tenant, ruling.changed)
            return
        response = read_response(answer.headers, answer.body)
        if response is None:
            return
        named = ruling.asked._replace(id=str(response.get("id") or request.id))
        await ruling.task.passed(ruling._replace(asked=named), response, latency_ms=answer.latency_ms)

    async def aclose(self) -> None:
        """Finish what is under way and free all models."""
        if self._following is not None:
            self._following.cancel()
        await self._background.wait()
        await self.credentials.aclose()
        for task in self.tasks.values():
            await task.aclose()
        self._ledger.close()

    async def _follow(self) -> None:
        """Follow the file, whether or not there are requests."""
        while True:
            await asyncio.sleep(self._interval_s)
            if (stamp := self._file.stamp) == self._stamp:
                continue
            self._stamp = stamp
            try:
                replaced = self._use(await asyncio.to_thread(self._loaded))
            except Exception:
                _log.exception("what is taken over cannot be followed")
                continue
            for task in replaced:
                self._background.start(self._end(task))

    async def _end(self, task: LiveTask) -> None:
        await asyncio.sleep(self._interval_s)  # requests that are under way still use it
        await task.aclose()

    def _loaded(self) -> dict[str, LiveTask]:
        """Return the tasks of the file, those that have not changed as they are."""
        wanted = self._file.read()
        if not wanted:
            return {}
        from smallfirst.traffic.gateway.live_task import LiveTask

        known = {name: self.tasks[name] for name in wanted if name in self.tasks}
        found = {name: running for name, running in known.items() if running.serves == wanted[name].serves}
        for name, running in found.items():
            running.follow(wanted[name])  # before others are loaded, which takes seconds
        for name, taken in wanted.items():
            if name in found or self._failed.get(name) == taken:
                continue
            try:
                given = (self._file.update, self._one_tenant, self._prices)
                found[name] = LiveTask.load(taken, self._ledger, *given)
            except Exception as error:
                self._failed[name] = taken
                _log.error("%s is not served, so its requests go to the upstream. %s", name, error)
                found |= {name: known[name]} if name in known else {}
        return found

    def _use(self, tasks: dict[str, LiveTask]) -> list[LiveTask]:
        """Serve these tasks from now on; return those that are no longer served."""
        before, self.tasks = self.tasks, tasks
        self._matcher = TaskMatcher({name: task.source for name, task in tasks.items()})
        return [task for name, task in before.items() if tasks.get(name) is not task]


_QUERY = re.compile(rb"(?:api-version=[\w.-]*|beta=true)?")


def _answered_route(request: GatewayRequest) -> str | None:
    """Return the route on which a small model may answer a request; None if it is on none."""
    head = read_head(request)
    return head[0] if head and head[0] in DIALECTS and _QUERY.fullmatch(request.query) else None


async def _reply(route: str, ruling: Ruling) -> GatewayResponse:
    """Note the small model's answer, and return it as the upstream would have written it."""
    task, asked = ruling.task, ruling.asked
    noted = await task.answered(ruling)
    assert ruling.answer is not None
    reply = Reply(
        id=asked.id,
        body=asked.body,
        answer=ruling.answer,
        prompt_tokens=noted.prompt_tokens,
        completion_tokens=noted.completion_tokens,
        model=task.source.teacher.model or str(asked.body.get("model")),
        fingerprint=system_fingerprint(noted.answered_by),
        created=int(time.time()),
    )
    content_type, body = write_reply(route, reply)
    named = {"task": task.taken.task, "model": noted.answered_by, "certified": "true"}
    headers = raw_headers({f"x-smallfirst-{name}": text for name, text in named.items()})
    return GatewayResponse(200, [(b"content-type", content_type.encode()), *headers], body)


def _asking_again(request: GatewayRequest, upstreams: Upstreams) -> Callable[[], Awaitable[tuple[int, Json | None]]]:
    """Return the function that sends a request to its upstream once more, not streamed."""

    async def ask() -> tuple[int, Json | None]:
        body = {key: value for key, value in (request.json() or {}).items() if key not in ("stream", "stream_options")}
        try:
            answer = await upstreams.ask(dataclasses.replace(request, body=json.dumps(body).encode()))
        except UpstreamFailed as failure:
            return failure.status, None
        return answer.status, read_response(answer.headers, answer.body)

    return ask


# Whether an answer of one's own can stand for the upstream's

_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")
_Nothing = Annotated[list[Any], Field(max_length=0)] | None


class _PlainText(pydantic.BaseModel):
    model_config = _STRICT

    type: Literal["text", "input_text", "output_text"]
    text: str
    cache_control: dict[str, Any] | None = None
    annotations: _Nothing = None
    logprobs: _Nothing = None


class _PlainMessage(pydantic.BaseModel):
    model_config = _STRICT

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_PlainText]
    id: str | None = None
    name: str | None = None
    status: str | None = None
    refusal: None = None
    annotations: _Nothing = None


_SHARE = Annotated[float, Field(ge=0, le=1)]
_TIERS = Literal["auto", "default", "flex", "scale", "priority", "fast"]
_EFFORT = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_VERBOSITY = Literal["low", "medium", "high"]
_Stop = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(min_length=1, max_length=64)]
_KINDS: Mapping[Any, str] = {
    Annotated[str, Field(min_length=1)]: "model",
    str: "user",
    Annotated[str, Field(max_length=64)]: "prompt_cache_key safety_identifier",
    _TIERS: "service_tier",
    _EFFORT: "reasoning_effort",
    _VERBOSITY: "verbosity",
    Literal["in_memory", "24h"]: "prompt_cache_retention",
    bool: "stream parallel_tool_calls store logprobs",
    Annotated[int, Field(ge=-(2**63), lt=2**63)]: "seed",
    Annotated[int, Field(ge=0)]: "top_k",
    Annotated[dict[_Name, Annotated[str, Field(max_length=512)]], Field(max_length=16)]: "metadata",
    dict[str, Any]: "response_format text",
    list[dict[str, Any]]: "tools functions",
    list[_PlainMessage]: "messages",
    str | list[_PlainMessage]: "input",
    str | list[_PlainText]: "instructions system",
    _Stop | Annotated[list[_Stop], Field(min_length=1, max_length=4)]: "stop",
    list[_Stop]: "stop_sequences",
    Literal["none", "auto", "required"] | dict[str, Any]: "tool_choice",
    Literal["auto", "disabled"]: "truncation",
    dict[Literal["include_usage", "include_obfuscation"], bool | None]: "stream_options",
    dict[Literal["effort"], _EFFORT | None]: "reasoning",
    Annotated[float, Field(ge=0, le=2)]: "temperature",
    _SHARE: "top_p",
    Annotated[float, Field(ge=-2, le=2)]: "presence_penalty frequency_penalty",
    Annotated[int, Field(ge=1, lt=2**31)]: "max_tokens max_completion_tokens",
    Annotated[int, Field(ge=16, lt=2**31)]: "max_output_tokens",
    Annotated[int, Field(ge=1, le=1)]: "n",
    _Nothing: "include",
}
"""What may stand in a request that asks for its answer alone: no second one, no probabilities, nothing kept."""
_KIND = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_COMMON = "model stream temperature top_p metadata tools tool_choice service_tier"
_OPENAI = (
    f"{_COMMON} user store parallel_tool_calls prompt_cache_key prompt_cache_retention safety_identifier stream_options"
)


def _shape(names: str, **kinds: Any) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {name: (kinds.get(name, _KIND.get(name)), None) for name in names.split()}
    return pydantic.create_model("Asked", __config__=_STRICT, **fields)


_SHAPES: Mapping[str, type[pydantic.BaseModel]] = {
    "chat/completions": _shape(
        f"{_OPENAI} messages max_tokens max_completion_tokens response_format reasoning_effort verbosity seed stop n "
        "presence_penalty frequency_penalty logprobs functions",
        tools=Annotated[list[dict[str, Any]], Field(min_length=1)],
    ),
    "responses": _shape(
        f"{_OPENAI} input instructions max_output_tokens text reasoning truncation include",
        service_tier=_TIERS | Literal["ultrafast"],
        stream_options=dict[Literal["include_obfuscation"], bool | None],
    ),
    "messages": _shape(
        f"{_COMMON} messages system max_tokens top_k stop_sequences",
        temperature=_SHARE,
        tool_choice=dict[str, Any],
        service_tier=Literal["auto", "standard_only"],
        metadata=dict[Literal["user_id"], Annotated[str, Field(max_length=256)] | None],
    ),
}
"""By route the settings that do not change what a task's answer is, as the providers' own clients and references have
them. What they would refuse passes: the error is theirs. Tools, functions, `response_format` and `text` are as recorded
ones were, or the wording would not be followed."""
_SAMPLING = {"temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""The providers' own values; a client that sets a higher one asks for another answer than the likeliest."""
_MOST = {"store": False, "logprobs": False, **_SAMPLING}
_BYTES_PER_TOKEN = 3
"""Fewest bytes of an answer that a token is taken to cover."""


def why_not(route: str, body: Json, *, kind: str = "text") -> str:
    """Return why no answer of one's own can stand for the upstream's, in a clause; empty if one can.

    `kind` is the answer format's: a label is chosen and not written, whatever settings of sampling there are; of a call
    the conversation is known to be understood.
    """
    if kind == "call" and (why := why_continued(route, body)):
        return why
    checked = CONVERSATION if kind == "call" else ()
    may_be_null = route != "messages"
    given = {name: value for name, value in body.items() if not (value is None and may_be_null) and name not in checked}
    try:
        _SHAPES[route].model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        return f"it sets {name}" if first["type"] == "extra_forbidden" else f"it asks for {name}: {body.get(name)}"
    if why := _refused(route, body):
        return why
    more = next((name for name, most in _MOST.items() if given.get(name, most) > most), None)
    return "" if more is None or (kind == "label" and more in _SAMPLING) else f"it asks for {more}: {given[more]}"


def _refused(route: str, body: Json) -> str:
    """Return why the provider refuses settings that are fine one by one, in a clause; empty if it does not."""
    try:
        compact(body).encode()
    except UnicodeEncodeError:
        return "it holds half a character"
    if body.get("stream_options") is not None and body.get("stream") is not True:
        return "it sets stream_options without stream"
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        return "it sets max_tokens twice"
    if route == "chat/completions" and body.get("parallel_tool_calls") is not None and not body.get("tools"):
        return "it sets parallel_tool_calls without tools"
    return "it sets no max_tokens" if route == "messages" and "max_tokens" not in body else ""


def why_not_this(body: Json, answer: ModelAnswer, *, kind: str = "text") -> str:
    """Return why `answer` cannot stand for the upstream's to an understood request, in a clause; empty if it can."""
    called = [call.name for call in answer.tool_calls]
    if wrong := _wrong_tools(body.get("tool_choice"), called):
        return wrong
    if kind == "call" and (wrong := why_not_these(body, answer.tool_calls)):
        return wrong
    written = answer.text + "".join(call.arguments for call in answer.tool_calls)
    stop = body.get("stop") or body.get("stop_sequences") or ()
    if any(text in written for text in ([stop] if isinstance(stop, str) else stop)):
        return "a stop sequence is in the answer"
    most = [body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limits = [limit for limit in most if limit is not None]
    if limits and len(written.encode()) > _BYTES_PER_TOKEN * min(limits):
        return "the answer may be longer than the request allows"
    return ""


def _wrong_tools(choice: Any, called: Sequence[str]) -> str:
    """Return how an answer breaks a request's `tool_choice`, OpenAI's or Anthropic's; empty if it does not."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "none":
        return "it forbids tools, and the answer calls one" if called else ""
    if kind == "allowed_tools" and called:
        own = choice.get("allowed_tools") or choice
        allowed = [(one.get("function") or one).get("name") for one in own.get("tools") or ()]
        return "" if called[0] in allowed else f"it does not allow {called[0]}"
    if kind in (None, "auto", "allowed_tools"):
        return ""
    named = (choice.get("function") or choice).get("name") if isinstance(choice, dict) else None
    if not called or (named is not None and named not in called):
        return f"it asks for a call of {named or 'a tool'}"
    return ""


# Which task a request is of

PREFIX = 64
"""Characters of the first constant piece by which wordings are looked up."""
NEAR_SHARE = 0.7
"""Share of a wording's words that a request must contain to look like a changed version of it."""
MIN_WORDS = 5
"""A wording with fewer different words is not looked for in other requests."""
_WORD = re.compile(r"\w+")
_LONGEST = 20_000
"""Characters of a request that are searched for words."""


class Match(NamedTuple):
    """The task of a request, and the case that it asks about."""

    task: str
    text: str
    answer_format: AnswerFormat


class _Wording(NamedTuple):
    task: str
    template: TaskTemplate
    models: tuple[str, ...]
    answer_format: AnswerFormat


class TaskMatcher:
    """An index of the wordings of several tasks. A lookup does not depend on their number."""

    def __init__(self, sources: Mapping[str, TaskSource]) -> None:
        learnt = any(source.assistant for source in sources.values())
        self.assistants = AssistantIndex(sources) if learnt else None
        self._by_prefix: dict[tuple[str, ...], dict[str, list[_Wording]]] = defaultdict(lambda: defaultdict(list))
        self._beginnings: dict[tuple[str, ...], set[str]] = defaultdict(set)
        long: list[tuple[str, frozenset[str], tuple[str, ...]]] = []
        for task, source in sources.items():
            for wording in source.templates:
                template, form = wording.template, wording.answer_format or source.answer_format
                first = template.turns[0].pieces[0][:PREFIX]
                kind = (template.tools, template.response_format, *(turn.role for turn in template.turns))
                self._by_prefix[kind][first].append(_Wording(task, wording, source.models, form))
                self._beginnings[kind[2:]].add(first.partition("[")[0])  # a placeholder stands for other text
                constant = " ".join(piece for turn in template.turns for piece in turn.pieces)
                words = frozenset(_WORD.findall(constant.lower()))
                if len(words) >= MIN_WORDS and not question_of(template.response_format):
                    long.append((task, words, source.models))
        self._long = sorted(long, key=lambda one: one[0])
        """Task, words and models of each wording with enough words; of equal ones the last task is the nearest."""
        self._n_words = np.array([len(words) for _, words, _ in self._long])
        holders: dict[str, list[int]] = defaultdict(list)
        for at, (_, words, _) in enumerate(self._long):
            for word in words:
                holders[word].append(at)
        self._with_word = {word: np.array(found, dtype=np.intp) for word, found in holders.items()}

    def may_find(self, raw: Prompt) -> bool:
        """Return False if a prompt that is not redacted yet follows no wording by its roles and first words.

        Redacting takes 0.3 ms for 1,000 characters, which requests of no task need not pay.
        """
        return raw.turns[0].text.startswith(tuple(self._beginnings.get(tuple(turn.role for turn in raw.turns), ())))

    def find(self, prompt: Prompt) -> Match | None:
        """Return the task whose wording the prompt follows, asked of a model that the task is asked of."""
        kind = (prompt.tools, prompt.response_format, *(turn.role for turn in prompt.turns))
        known, text = self._by_prefix.get(kind), prompt.turns[0].text
        if known is None:
            return None
        for length in sorted({len(prefix) for prefix in known}, reverse=True):
            for wording in known.get(text[:length], ()):
                if wording.models and prompt.model not in wording.models:
                    continue
                if (case := wording.template.text(prompt)) is not None:
                    return Match(wording.task, case, wording.answer_format)
        return None

    def near(self, prompt: Prompt) -> str | None:
        """Return the task that a prompt which follows no wording resembles most: a changed wording of it, or None.

        It is asked of a model that the task is asked of.
        A typed question resembles none: many are asked at once in almost the same words, and a changed one is another.
        """
        if not self._long or question_of(prompt.response_format):
            return None
        text = "\n".join(turn.text for turn in prompt.turns)[:_LONGEST]
        found = [at for word in set(_WORD.findall(text.lower())) if (at := self._with_word.get(word)) is not None]
        if not found:
            return None
        shares = np.bincount(np.concatenate(found), minlength=len(self._long)) / self._n_words
        enough = np.flatnonzero(shares >= NEAR_SHARE)
        asked = [at for at in enough if not self._long[at][2] or prompt.model in self._long[at][2]]
        return self._long[max(asked, key=lambda at: (shares[at], at))][0] if asked else None
