"""Everything that answers is a Model: a fine-tuned one, an endpoint, recorded answers, a linear one, a Router.

One small Protocol, so one `evaluate()` measures every path and one `serve()` serves any of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

from pydantic import Field

from smallfirst.data.dataset import Message
from smallfirst.records import Record

MAX_LOGPROBS = 20
"""Alternatives beside a token at most, as OpenAI allows."""


class ResponseFormat(Record):
    """The form a written answer must have."""

    kind: Literal["json_object", "json_schema"]
    """Any JSON object, or JSON of a schema."""
    name: str = ""
    """What the client calls the schema."""
    json_schema: dict[str, Any] = {}
    """The schema, if there is one; whoever takes it in has checked its size."""
    strict: bool = False
    """Whether the client insists; here every answer is held to the schema."""

    @property
    def answer_schema(self) -> dict[str, Any]:
        """JSON schema that the answer must follow."""
        return {"type": "object"} if self.kind == "json_object" else self.json_schema


class Request(Record):
    """What is asked of a Model: the user's own messages, never a task's prompt (the Model adds that)."""

    messages: tuple[Message, ...]
    """The conversation so far, oldest first; the last one is answered."""
    max_tokens: int = 256
    """Most tokens the answer may have."""
    temperature: float = 0.0
    """0 = the likeliest answer."""
    seed: int | None = None
    """For sampled answers."""
    stop: tuple[str, ...] = ()
    """Texts at which a written answer ends."""
    response_format: ResponseFormat | None = None
    """Form the answer must have; a model whose task has a form of its own keeps to that one."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Alternatives wanted beside each token of the answer; None: no token probabilities at all."""
    tenant: str = ""
    """Who asks (SHA-256 of the key): what a model remembers of a request is never shared with another tenant."""
    tags: dict[str, str] = {}
    """What the client says about the request (OpenAI's `metadata` and `user`), for rules and sticky splits; no model
    reads it."""

    @property
    def text(self) -> str:
        """Content of the last user message."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @classmethod
    def ask(cls, text: str, *, max_tokens: int = 256) -> Request:
        """A request of one user message."""
        return cls(messages=(Message(role="user", content=text),), max_tokens=max_tokens)


class RouteStep(Record):
    """What one stage of a Router did with a request."""

    stage: str
    """The stage: `domain`, `rule`, `words`, `small`, `large`, …"""
    decision: Literal["kept", "passed on", "answered", "failed", "not asked"]
    """`kept`: the draft stands · `passed on`: the next stage decides · `answered`: the last word · `not asked`: it was
    a choice, and another one was made."""
    why: str
    """One clause a person understands."""
    model: str = ""
    """Who worked; empty for a stage that is no model."""
    score: float | None = None
    """What was compared with the threshold, in [0, 1]."""
    threshold: float | None = None
    """What the score had to reach (or, for a doubt, must not pass), in [0, 1]."""
    cost_usd: float = 0.0
    """What the step cost; for `not asked`, what it was expected to cost."""
    latency_ms: float = 0.0
    """How long it took."""


class Route(Record):
    """Which way a Router sent a request, and why."""

    stage: str
    """`small` or `large` (or the name of another stage)."""
    why: str
    """One sentence a person understands."""
    certified: bool
    """True if the answer is covered by the Router's certificate."""
    threshold: float | None = None
    """Confidence asked for, in [0, 1]."""
    confidence: float | None = None
    """Confidence of the small model's draft, in [0, 1]."""
    task: str = ""
    """The task whose Router decided; empty where no task was found."""
    promise: str = ""
    """What is promised about a certified answer, in words."""
    trail: tuple[RouteStep, ...] = ()
    """Every step on the way, in order, and last the choice that was not made, if there was one."""
    audit_share: float | None = None
    """Chance in (0, 1] that this answer had of being audited; None where none is."""
    audited: bool = False
    """True if chance has chosen this answer to be held against another one."""


class Token(Record):
    """One token of an answer."""

    text: str
    """The token as text; a part of a character shows as a replacement character."""
    logprob: float
    """Log-probability among what the model could have written there, in nats."""
    octets: tuple[int, ...] = ()
    """Its bytes: a token may end inside a character."""
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens there with their log-probabilities, likeliest first, as many as were asked for."""


class Completion(Record):
    """One answer, with what it took."""

    text: str
    """The answer."""
    answered_by: str
    """Name of the model that wrote it."""
    latency_ms: float
    """From request to whole answer, thrown-away drafts included."""
    cost_usd: float
    """What the answer cost, thrown-away drafts included. Unknown prices raise, they are never 0."""
    prompt_tokens: int = 0
    """Tokens read."""
    completion_tokens: int = 0
    """Tokens written (1 for a scored label)."""
    confidence: float | None = None
    """Probability of being right as the model sees it, in [0, 1]; None if it has no view."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """Best labels with their probabilities, best first, at most five; empty for free text."""
    field_confidence: dict[str, float] = {}
    """By field path of a JSON answer, the probability of its value as the model sees it, in [0, 1]."""
    finish_reason: Literal["stop", "length"] = "stop"
    """Why the answer ended."""
    tokens: tuple[Token, ...] = ()
    """The answer token by token, only if the request wanted log-probabilities and the model has them. A scored label is
    one token."""
    route: Route | None = None
    """Set by a Router."""


class Chunk(Record):
    """A piece of a streamed answer; the last piece carries the whole Completion."""

    text: str = ""
    """New text since the piece before."""
    tokens: tuple[Token, ...] = ()
    """The tokens of this piece, only if the request wanted log-probabilities."""
    completion: Completion | None = None
    """Set on the last piece only."""


class Capability(StrEnum):
    """What a Model can do beyond answering in one piece."""

    STREAM = "stream"
    """`stream` yields text while it is generated; without it the whole answer comes in one chunk."""
    JSON = "json"
    """Free text is held to `Request.response_format`."""
    LOGPROBS = "logprobs"
    """Token log-probabilities are returned where `Request.logprobs` asks for them."""
    EMBEDDINGS = "embeddings"
    """The model is an `Embeds`."""
    LABEL_PROBABILITIES = "label_probabilities"
    """The model is a `Scores`."""
    READINESS = "readiness"
    """The model is a `Probed`."""


@runtime_checkable
class Model(Protocol):
    """Anything that answers a Request."""

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the model can do beyond answering. Ask these, never for a class: a wrapper passes them on."""

    async def complete(self, request: Request) -> Completion:
        """The whole answer. Raises ModelError if there is none."""

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer piece by piece, ending with a Chunk that carries the Completion."""

    async def aclose(self) -> None:
        """Free what the model holds (connections, child processes). Safe to call twice."""


class Embeddings(NamedTuple):
    """What texts look like to a model."""

    vectors: list[list[float]]
    """One per text, of length 1."""
    n_tokens: int
    """Tokens read."""
    cost_usd: float
    """What it cost."""


class LabelScores(NamedTuple):
    """Probabilities of all labels for one text."""

    labels: tuple[str, ...]
    """The labels, in the task's order."""
    probabilities: list[float]
    """One per label, calibrated; they sum to 1."""
    n_tokens: int
    """Tokens read."""
    cost_usd: float
    """What it cost."""


@runtime_checkable
class Embeds(Protocol):
    """A Model that also turns texts into vectors."""

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector per text, in order. Raises ModelError."""


@runtime_checkable
class Scores(Protocol):
    """A Model that also gives the probability of every label."""

    async def probabilities(self, texts: Sequence[str]) -> list[LabelScores]:
        """One result per text, in order. Raises ModelError."""


@runtime_checkable
class Probed(Protocol):
    """A Model that can say whether it would answer now."""

    async def ready(self) -> None:
        """Nothing if it would, shown by a tiny piece of real work that is not paid for. Raises ModelError."""


async def stream_in_one_chunk(model: Model, request: Request) -> AsyncIterator[Chunk]:
    """The stream of a model that answers in one piece (a label, a recording)."""
    completion = await model.complete(request)
    yield Chunk(text=completion.text, tokens=completion.tokens)
    yield Chunk(completion=completion)


def embedding_model(model: Model) -> Embeds | None:
    """Return `model` as one that embeds texts, or None if it does not."""
    return cast(Embeds, model) if Capability.EMBEDDINGS in model.capabilities else None


def label_probability_model(model: Model) -> Scores | None:
    """Return `model` as one that gives label probabilities, or None if it does not."""
    return cast(Scores, model) if Capability.LABEL_PROBABILITIES in model.capabilities else None


def probed_model(model: Model) -> Probed | None:
    """Return `model` as one whose readiness can be probed, or None if it cannot."""
    return cast(Probed, model) if Capability.READINESS in model.capabilities else None
