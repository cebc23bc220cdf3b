"""The Model protocol, its records and the bases of its implementations: whatever answers a request, a Router too.

An answer that is cut off, refused after the work, or a draft goes to the Request's Bill, by its Model, which knows
tokens and prices. Where an upstream does not say what it wrote, the estimate is the tokens that have come, or all that
were allowed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import pydantic
from pydantic import Field, InstanceOf

from smallfirst.base.errors import ModelError
from smallfirst.base.records import Record
from smallfirst.base.sync import run_sync
from smallfirst.data.dataset import Message
from smallfirst.models.pricing import Charge, stated, total_usd, with_purpose

DEFAULT_MAX_TOKENS = 256
"""Most tokens of an answer unless a request says otherwise; evaluation asks so, and thus certificates are made so."""
MAX_LOGPROBS = 20
"""Most alternatives beside a token, as in OpenAI's API."""
BYTES_PER_TOKEN = 4
"""Of ordinary text in UTF-8, to estimate how many tokens were written."""


@dataclass
class Attempt:
    """One request to an endpoint. Until its end is known its outcome is `abandoned` and its cost unknown."""

    endpoint: str
    """The endpoint's base URL."""
    model: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    outcome: str = "abandoned"
    """`answered`, `not connected`, `HTTP 503`, `timeout`, `broken off`, `invalid answer`, …; `abandoned` if the
    caller left first."""
    cost_usd: float | None = None
    """0 if the endpoint did nothing; None if it may have worked and nobody knows for how much."""
    latency_ms: float = 0.0
    started_s: float = field(default_factory=time.perf_counter)

    def end(self, outcome: str, cost_usd: float | None = None) -> None:
        self.outcome, self.cost_usd = outcome, cost_usd
        self.latency_ms = (time.perf_counter() - self.started_s) * 1000


class Bill:
    """What Models spend for a caller beside the Completions that it gets.

    The caller makes it, hands it over with a Request, and reads it.
    """

    unfinished: list[Completion]
    """Usage of work whose Completion nobody gets: cut off, refused after the work, or a draft."""
    attempts: list[Attempt]
    """Requests to endpoints."""

    def __init__(self) -> None:
        self.unfinished, self.attempts = [], []

    def add(self, completion: Completion) -> None:
        """Note the tokens and the charges of work whose Completion is not returned."""
        self.unfinished.append(completion.with_charges(with_purpose(completion.charges, "attempt")))


class ResponseFormat(Record):
    """The format that a generated answer must have."""

    kind: Literal["json_object", "json_schema"]
    """Any JSON object, or JSON under a schema."""
    name: str = ""
    """The client's name for the schema."""
    json_schema: dict[str, Any] = {}
    """The schema, if there is one; its size is checked where it comes in."""
    strict: bool = False
    """As the client sent it; every answer is held to the schema anyway."""

    @property
    def answer_schema(self) -> dict[str, Any]:
        return {"type": "object"} if self.kind == "json_object" else self.json_schema


class Request(Record):
    """A request to a Model: the user's own messages, without the task's prompt, which the Model adds."""

    messages: tuple[Message, ...]
    """The conversation, oldest message first; the last one is answered."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """Most tokens the answer may have."""
    temperature: float = 0.0
    """0 = the likeliest answer."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts before which a generated answer ends."""
    response_format: ResponseFormat | None = None
    """Format of the answer; a model whose task has a schema of its own follows that one."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Alternatives to return beside each token of the answer; None: no token probabilities at all."""
    tools: str = ""
    """The functions that an answer may call, as JSON (`conversations.read_functions`); empty without any."""
    tenant: str = ""
    """The client (owner of its key); what a model caches of a request is never shared with another tenant."""
    tags: dict[str, str] = Field(default_factory=dict)
    """The client's own tags (OpenAI's `metadata` and `user`), for rules and sticky splits; no model reads them."""
    bill: InstanceOf[Bill] | None = Field(None, exclude=True, repr=False)
    """What is spent for the request beside its Completion goes here; None: nobody asks."""

    @property
    def text(self) -> str:
        """Content of the last user message."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def as_evaluated(self) -> Request:
        """The request with the settings at which models are evaluated and certified."""
        return Request(messages=self.messages, tenant=self.tenant, tags=self.tags)

    @classmethod
    def ask(cls, text: str, *, max_tokens: int = DEFAULT_MAX_TOKENS) -> Request:
        return cls(messages=(Message(role="user", content=text),), max_tokens=max_tokens)


class ValuePlace(Record):
    """Where an argument of a call, or a field, was read, in the messages as chat completions write them."""

    message: int
    """Its index, from 0."""
    role: str
    start: int = 0
    end: int = 0
    """Characters of its text; 0 in a result or a former call, and where parts of the value are said."""
    page: int = 0
    """Of a field, the page of its document, from 1; 0 of an argument."""
    offset: int = 0
    """Of a field, characters from the beginning of the page."""
    words: str = ""
    """What stands there; the ledger does not keep it."""

    def in_message(self, index: int) -> ValuePlace:
        """Return the place of a field, in that message; an argument's place names its own."""
        return self.model_copy(update={"message": index}) if self.page else self

    def __str__(self) -> str:
        place = f"messages[{self.message}] ({self.role})"
        place += f", page {self.page}, offset {self.offset}" if self.page else ""
        place += f", characters {self.start} to {self.end}" if self.end else ""
        return f"{place}: {self.words}" if self.words else place


class RouteStep(Record):
    """The decision of one stage of a Router about a request."""

    stage: str
    """The stage: `domain`, `rule`, `words`, `small`, `large`, …"""
    decision: Literal["kept", "passed on", "answered", "failed", "not asked"]
    """`kept`: the draft is the answer · `passed on`: the next stage decides · `answered`: final · `not asked`: an
    alternative that was not chosen."""
    why: str
    """The reason, in one clause."""
    model: str = ""
    """Name of the model; empty for a stage without one."""
    score: float | None = None
    """The value compared with the threshold, in [0, 1]."""
    threshold: float | None = None
    """The least score that passes (for an out-of-domain score: the largest), in [0, 1]."""
    cost_usd: float = 0.0
    """Cost of the step; for `not asked`, its expected cost."""
    latency_ms: float = 0.0
    differs: bool = False
    """True if the answer differs from the last draft, which was not sure enough, by the task's own score."""
    function: str = ""
    """The function that an assistant's answer calls, or `no call`; empty of other tasks and discarded drafts."""
    read: dict[str, ValuePlace | None] = {}
    """By argument of a kept call where its value was said last; None for a usual value that is judged from words. By
    path of a marked field (`total`, `items[0]`) where it was read."""


class Route(Record):
    """The stage at which a Router answered a request, and why."""

    stage: str
    """`small` or `large` (or the name of another stage)."""
    why: str
    """The reason, in one sentence."""
    certified: bool
    """True if the answer is covered by the Router's certificate."""
    threshold: float | None = None
    """Confidence required, in [0, 1]."""
    confidence: float | None = None
    """Confidence of the small model's draft, in [0, 1]."""
    task: str = ""
    """The task whose Router decided; empty where no task was found."""
    guarantee: str = ""
    """The guarantee on certified answers, in words."""
    certified_fields: tuple[str, ...] | None = None
    """Top-level fields of a JSON answer that the certificate covers, each by its own confidence; None where it limits
    no fields."""
    trail: tuple[RouteStep, ...] = ()
    """Every step in order, and last the alternative that was not chosen, if there was one."""
    language: str = ""
    """The request's language (ISO 639-1) where the certificate is by language; empty where it is not told."""
    audit_share: float | None = None
    """Probability in (0, 1] with which this answer was to be audited; None where answers are not audited."""
    audit_weight: float = 1.0
    """Weight of its audit in tests and intervals: the mean probability at that moment over its own."""
    audited: bool = False
    """True if the answer was drawn for an audit."""


class Token(Record):
    """One token of an answer."""

    text: str
    """The token as text; bytes of an incomplete character show as a replacement character."""
    logprob: float
    """Log-probability among the tokens that were allowed there, in nats."""
    octets: tuple[int, ...] = ()
    """Its UTF-8 bytes; a token may end inside a character."""
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens there with their log-probabilities, likeliest first, as many as were requested."""


class Completion(Record):
    """One answer, its cost and its confidence."""

    text: str
    answered_by: str
    """Name of the model that produced it."""
    latency_ms: float
    """From request to whole answer, discarded drafts included."""
    cost_usd: float
    """Cost of the answer, discarded drafts included. An unknown price is an error, never 0."""
    charges: tuple[Charge, ...] = ()
    """The lines of its bill, whose sum is `cost_usd`; one line where a model states a cost alone."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens generated (1 for a label)."""
    estimated: bool = False
    """True if tokens and cost are estimated, since the answer was cut off."""
    confidence: float | None = None
    """The model's own probability in [0, 1] of being right; None if it gives none."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """The likeliest labels with their probabilities, likeliest first, at most five; empty for free text."""
    field_confidence: dict[str, float] = Field(default_factory=dict)
    """By field path of a JSON answer, the model's own probability in [0, 1] of its value."""
    read: dict[str, ValuePlace | None] = {}
    """As in `RouteStep`."""
    finish_reason: Literal["stop", "length"] = "stop"
    """Why the answer ended."""
    stopped: bool | None = None
    """True if a text of `Request.stop` ended it, False if none did; None if the model cannot tell."""
    refusal: bool = False
    """True if `text` says why there is no answer; OpenAI's `refusal` carries it then, and `content` is null."""
    tokens: tuple[Token, ...] = ()
    """The tokens of the answer, only if the request wants log-probabilities and the model has them. A label is one
    token."""
    route: Route | None = None
    """Set by a Router."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _itemized(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("charges") or not values.get("cost_usd"):
            return values
        return {**values, "charges": (stated(str(values.get("answered_by")), values["cost_usd"]),)}

    @property
    def cached_tokens(self) -> int:
        """Of `prompt_tokens`, those that a provider read from its cache."""
        cached = sum(charge.tokens.cached_tokens for charge in self.charges if charge.purpose != "draft")
        return min(cached, self.prompt_tokens)  # several answers to a prompt count it once

    def with_charges(self, charges: Iterable[Charge], **changes: Any) -> Completion:
        """Return a copy with these lines as its bill, and their sum as its cost."""
        lines = tuple(charges)
        return self.model_copy(update={"charges": lines, "cost_usd": total_usd(lines), **changes})


class Chunk(Record):
    """A part of a streamed answer; the last one carries the whole Completion."""

    text: str = ""
    """Text since the chunk before."""
    tokens: tuple[Token, ...] = ()
    """The tokens of this chunk, only if the request wants log-probabilities."""
    completion: Completion | None = None
    """Set on the last chunk only."""


class Capability(StrEnum):
    """Abilities of a Model beyond answering in one piece."""

    STREAM = "stream"
    """`stream` yields text while it is generated; without it the whole answer comes in one chunk."""
    JSON = "json"
    """Free text is held to `Request.response_format`."""
    LOGPROBS = "logprobs"
    """Token log-probabilities are returned where `Request.logprobs` asks for them."""
    LABEL_PROBABILITIES = "label_probabilities"
    """The model is a `LabelProbabilityModel`."""
    READINESS = "readiness"
    """The model is a `ProbedModel`."""
    CHOSEN = "chosen"
    """Answers are chosen, marked or recorded and not generated: no temperature, `stop`, `max_tokens` or format of a
    request changes them. Answers of a model without it are certified only with the settings of its evaluation."""


@runtime_checkable
class Model(Protocol):
    """Anything that answers a Request. Cut off, it adds what it has used to the request's `bill`."""

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The model's abilities. Check these, never the class: a wrapper passes them on."""

    async def complete(self, request: Request) -> Completion:
        """Return the whole answer. Raise ModelError if there is none."""

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer in chunks, the last of which carries the Completion."""

    async def aclose(self) -> None:
        """Free the model's connections, threads and processes. Safe to call twice."""


class LabelScores(NamedTuple):
    """Probabilities of all labels for one text."""

    labels: tuple[str, ...]
    probabilities: list[float]
    """One per label, calibrated; they sum to 1."""
    n_tokens: int
    charges: tuple[Charge, ...] = ()
    """The bill."""


class LabelProbabilityModel(Protocol):
    """A Model that also gives the probability of every label."""

    async def probabilities(self, texts: Sequence[str], bill: Bill | None = None) -> list[LabelScores]:
        """Return one result per text, in order. Raise ModelError."""


class ProbedModel(Protocol):
    """A Model that can check whether it would answer now."""

    async def ready(self) -> None:
        """Return if a tiny piece of real work, free of charge, succeeds. Raise ModelError otherwise."""


@asynccontextmanager
async def open_stream(model: Model, request: Request) -> AsyncIterator[AsyncIterator[Chunk]]:
    """Yield the model's stream and close it at the end, so that an answer that nobody waits for ends at once."""
    chunks = model.stream(request)
    try:
        yield chunks
    finally:
        close = getattr(chunks, "aclose", None)  # a plain iterator has nothing to close
        if close is not None:
            await close()


async def stream_in_one_chunk(model: Any, request: Request) -> AsyncIterator[Chunk]:
    """Yield the answer of a model that has no parts of one (a label, a recording)."""
    completion = await model.complete(request)
    yield Chunk(text=completion.text, tokens=completion.tokens)
    yield Chunk(completion=completion)


def label_probability_model(model: Model) -> LabelProbabilityModel | None:
    """Return `model` as one that gives label probabilities, or None if it does not."""
    return cast(LabelProbabilityModel, model) if Capability.LABEL_PROBABILITIES in model.capabilities else None


def probed_model(model: Model) -> ProbedModel | None:
    """Return `model` as one whose readiness can be probed, or None if it cannot."""
    return cast(ProbedModel, model) if Capability.READINESS in model.capabilities else None


class DelegatingModel:
    """Answer as `inner` does; subclasses override what differs, or `_target` alone to redirect every call."""

    def __init__(self, inner: Model, *, name: str | None = None) -> None:
        self.inner, self._name = inner, name

    @property
    def name(self) -> str:
        return self.inner.name if self._name is None else self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.inner.capabilities

    @property
    def max_answer_tokens(self) -> int | None:
        return max_answer_tokens(self.inner)

    @property
    def functions(self) -> Sequence[Mapping[str, Any]] | None:
        """The functions that the model calls; None where it calls none."""
        return getattr(self.inner, "functions", None)

    @contextmanager
    def _target(self) -> Iterator[Model]:
        """Yield the model that takes the next call; it stays usable until the context ends."""
        yield self.inner

    async def complete(self, request: Request) -> Completion:
        with self._target() as model:
            return await model.complete(request)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer piece by piece. Closing the iterator closes the wrapped model's."""
        with self._target() as model:
            async with open_stream(model, request) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def probabilities(self, texts: Sequence[str], bill: Bill | None = None) -> list[LabelScores]:
        with self._target() as model:
            able = label_probability_model(model)
            if able is None:
                raise ModelError(f"{model.name} has no label probabilities")
            return await able.probabilities(texts, bill)

    async def ready(self) -> None:
        with self._target() as model:
            able = probed_model(model)
            if able is not None:
                await able.ready()

    async def aclose(self) -> None:
        """Close the wrapped model. A subclass that shares it overrides this."""
        await self.inner.aclose()


class CallableModel:
    """A base of Models that can be called: `router("where is my card")`, with or without an event loop."""

    def __call__(self: Model, request: str | Request) -> Completion:
        """Return the whole answer to a text, as `await complete(Request.ask(text))` does."""
        return run_sync(self.complete(Request.ask(request) if isinstance(request, str) else request))

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the whole answer as one chunk."""
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        """Do nothing: no resource is held."""

    def __repr__(self: Model) -> str:
        return f"{type(self).__name__}({self.name!r})"


class MembersModel(CallableModel):
    """A base of Models that are made of others, which they own."""

    members: Collection[Model]

    async def ready(self) -> None:
        for member in self.members:
            if (able := probed_model(member)) is not None:
                await able.ready()

    async def aclose(self) -> None:
        for member in self.members:
            await member.aclose()


@contextmanager
def unless_answered(bill: Bill | None, usage: Callable[[BaseException], Completion | None]) -> Iterator[None]:
    """Add `usage(error)`, unless that is None, to a bill if an error ends the context."""
    try:
        yield
    except BaseException as error:
        if bill is not None and (used := usage(error)) is not None:
            bill.add(used)
        raise


def paid(charge: Charge) -> dict[str, Any]:
    """Return the fields of a Completion whose bill is this one line."""
    read, written = charge.tokens.prompt_tokens, charge.tokens.completion_tokens
    cost = {"cost_usd": charge.usd or 0.0, "charges": (charge,), "estimated": charge.estimated}
    return {**cost, "prompt_tokens": read, "completion_tokens": written}


def unfinished(charge: Charge, *, estimated: bool = True) -> Completion:
    """Return the usage of an answer that was not finished, as a Completion without text."""
    line = charge.model_copy(update={"estimated": estimated})
    return Completion(text="", answered_by=charge.model, latency_ms=0, **paid(line))


def usage_of_draft(name: str, charges: tuple[Charge, ...], draft: Completion | None) -> Completion | None:
    """Return the usage of a request's drafts, of which `draft` is the last; None if it has none."""
    if draft is None:
        return None
    read = {"prompt_tokens": draft.prompt_tokens, "completion_tokens": draft.completion_tokens}
    nothing = Completion(text="", answered_by=name, latency_ms=0, cost_usd=0.0, **read)
    return nothing.with_charges(with_purpose(charges, "draft"))


def estimate_prompt_tokens(request: Request) -> int:
    """Return a prompt's tokens, estimated at a third of its bytes: more than most texts need."""
    return sum(len(message.content.encode()) // 3 + 4 for message in request.messages)


def estimate_written_tokens(n_chunks: int, n_bytes: int) -> int:
    """Return the tokens of a text that came in so many chunks; most servers send one token in each."""
    return max(n_chunks, n_bytes // BYTES_PER_TOKEN)


def max_answer_tokens(*models: Model | None) -> int | None:
    """Return the most tokens that an answer of these models has; None if one of them has no `max_answer_tokens`."""
    limits: list[int | None] = [getattr(model, "max_answer_tokens", None) for model in models if model is not None]
    known = [limit for limit in limits if limit is not None]
    return max(known) if known and len(known) == len(limits) else None
