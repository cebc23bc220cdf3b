"""The large model behind the proxy, as a Model: its answers to passed requests, and asked again for audits."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, NamedTuple

from smallfirst.errors import ModelError
from smallfirst.models.protocol import Capability, Completion, Request
from smallfirst.models.usage import paid
from smallfirst.models.wrappers import CallableModel
from smallfirst.pricing.charge import Charge, stated
from smallfirst.pricing.prices import PriceBook
from smallfirst.pricing.tokens import TokenUsage, read_usage
from smallfirst.traffic.answers.answer_format import AnswerFormat
from smallfirst.traffic.billing import charge_of, estimate_tokens
from smallfirst.traffic.messages import read_answer
from smallfirst.traffic.task_source import TaskSource

Json = dict[str, Any]
AskAgain = Callable[[], Awaitable[tuple[int, Json | None]]]
"""Send a request to its upstream once more, not streamed; return the status and the response's body."""


class Asked(NamedTuple):
    """A request that follows a task's wording."""

    id: str
    path: str
    route: str
    """As `answerable.route_of` names it."""
    body: Json
    text: str
    """The case that it asks about."""
    again: AskAgain
    """Sends it to its upstream once more."""
    answer_format: AnswerFormat | None = None
    """Format of the answers to its wording; None: the task's."""
    tenant: str = "default"
    may_ask: bool = True
    """False while the upstream has not shown that it accepts the client's credential; then it answers itself."""

    @property
    def request(self) -> Request:
        """The request as the task's models take it."""
        return Request.ask(self.text)


class Upstream(CallableModel):
    """The upstream's model. A Router knows it as its large model; it is asked by `ask`, with a client's request."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, source: TaskSource, prices: PriceBook) -> None:
        self.name, self.source, self._prices = source.teacher.model, source, prices
        self.usual_usd = 0.0
        """Cost of an answer that has no price: the mean of the recorded ones; 0 if that is not known either."""

    async def complete(self, request: Request) -> Completion:
        """Raise ModelError: without a client's request there is no credential to ask with."""
        raise ModelError(f"{self.name} is asked with a client's request, by `ask`")

    async def ask(self, asked: Asked) -> Completion:
        """Send a request again, for an audit. Raise ModelError if it is not answered."""
        began = perf_counter()
        status, response = await asked.again()
        found = self.read(asked, response, latency_ms=(perf_counter() - began) * 1000) if status == 200 else None
        if found is None:
            raise ModelError(f"{self.name} did not answer an audit: HTTP {status}")
        return found

    def reads(self, asked: Asked, response: Json | None) -> bool:
        """Return True if the answer is whole and in the format of the recorded ones, as what is learnt from must be."""
        answer = read_answer(asked.path, response or {})
        return answer is not None and (asked.answer_format or self.source.answer_format).parse(answer) is not None

    def read(self, asked: Asked, response: Json | None, *, latency_ms: float = 0.0) -> Completion | None:
        """Return the answer in a response, in the task's form where it has the known format; None without one."""
        answer = read_answer(asked.path, response or {})
        if answer is None or response is None:
            return None
        named = str(response.get("model") or self.name)
        value = (asked.answer_format or self.source.answer_format).parse(answer)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value else answer.text
        return Completion(
            text=text, answered_by=named, latency_ms=latency_ms, **paid(self._charge(named, asked, response))
        )

    def _charge(self, named: str, asked: Asked, response: Json) -> Charge:
        """Return what the answer cost: as it states, by its tokens, or as the recorded ones did on average."""
        reported = read_usage(response)
        tokens = reported.tokens or estimate_tokens(asked.path, asked.body, response)
        known = reported._replace(tokens=tokens)
        charge = charge_of((named, str(asked.body.get("model") or ""), self.name), known, self._prices)
        if charge is None:
            usual, source = self.usual_usd or None, "the mean cost of recorded answers"
            charge = stated(named, usual, tokens=tokens or TokenUsage(), source=source)
        return charge.model_copy(update={"estimated": reported.tokens is None and reported.usd is None})
