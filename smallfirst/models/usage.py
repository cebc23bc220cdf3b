"""Usage without an answer: the most that one may take, and what was used where nobody gets it.

An answer that is cut off, refused after the work, or a draft is reported by its Model, which knows tokens and prices,
and collected by the server for its ledger and limits. Where an upstream does not say what it wrote, the estimate is
the tokens that have come, or all that were allowed. Attempts at endpoints are collected in the same manner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from smallfirst.models.pricing.charge import Charge, with_purpose
from smallfirst.models.protocol import Completion, Model, Request

BYTES_PER_TOKEN = 4
"""Of ordinary text in UTF-8, to estimate how many tokens were written."""

_collected: ContextVar[list[Completion] | None] = ContextVar("unfinished", default=None)


def collect_unfinished() -> list[Completion]:
    """Return a list that fills with what models report from now on in this context and in tasks that it starts."""
    found: list[Completion] = []
    _collected.set(found)
    return found


def report_unfinished(completion: Completion) -> None:
    """Report the tokens and the bill of work whose Completion is not returned."""
    if (found := _collected.get()) is not None:
        found.append(completion.with_charges(with_purpose(completion.charges, "attempt")))


class ReportUnfinished:
    """A context that reports `usage(error)`, unless that is None, if an error ends it before `done` is called."""

    def __init__(self, usage: Callable[[BaseException], Completion | None]) -> None:
        self._usage: Callable[[BaseException], Completion | None] | None = usage

    def done(self) -> None:
        """Note that the Completion, which has the usage, is returned."""
        self._usage = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and self._usage is not None and (used := self._usage(error)) is not None:
            report_unfinished(used)


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


_attempts: ContextVar[list[Attempt] | None] = ContextVar("attempts", default=None)


def collect_attempts() -> list[Attempt]:
    """Return a list that fills with the attempts from now on in this context and in tasks that it starts."""
    attempts: list[Attempt] = []
    _attempts.set(attempts)
    return attempts


def new_attempt(endpoint: str, model: str) -> Attempt:
    """Return an attempt that begins now, known to the caller of `collect_attempts`."""
    attempt = Attempt(endpoint, model)
    attempts = _attempts.get()
    if attempts is not None:
        attempts.append(attempt)
    return attempt
