"""Recorded decisions as exchanges of one question each: what is asked is the prompt, the state is the case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import pydantic

from smallfirst.traffic.decisions import openai_shape, systemone_shape
from smallfirst.traffic.decisions.question import FALSE, TRUE, DecisionRequest, Question, Usage, Verdict, label_of
from smallfirst.traffic.exchange import Exchange


class Asking(Protocol):
    """A shape in which an upstream can be asked."""

    ROUTE: str

    def write_request(self, request: DecisionRequest, questions: Sequence[Question], model: str) -> dict[str, Any]: ...

    def read_response(self, response: dict[str, Any], questions: Sequence[Question]) -> list[Verdict]: ...


class Shape(Asking, Protocol):
    """A shape in which applications ask."""

    def read_request(self, body: dict[str, Any]) -> DecisionRequest: ...

    def with_questions(self, request: DecisionRequest, questions: Sequence[Question], model: str) -> dict[str, Any]: ...

    def write_response(
        self, model: str, questions: Sequence[Question], verdicts: Sequence[Verdict], usage: Usage
    ) -> dict[str, Any]: ...


SHAPES: dict[str, Shape] = {openai_shape.ROUTE: openai_shape, systemone_shape.ROUTE: systemone_shape}
_SHARED = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd")


def is_decision(route: str) -> bool:
    """Return whether a route asks typed questions."""
    return route in SHAPES


def read_decision(route: str, body: dict[str, Any]) -> DecisionRequest | None:
    """Return the request's questions; None on another route, and for a malformed body."""
    try:
        return SHAPES[route].read_request(body) if route in SHAPES else None
    except pydantic.ValidationError:
        return None


def one_question_each(exchanges: Iterable[Exchange]) -> Iterator[Exchange]:
    """Yield decisions as one exchange a question, with equal parts of tokens and cost, and all others as they are.

    The exchange of question i, from 0, has the id `ID#i`. A decision that cannot be read passes as it is.
    """
    for exchange in exchanges:
        yield from _split(exchange) if is_decision(exchange.route) else (exchange,)


def read_label(route: str, response: dict[str, Any]) -> str | None:
    """Return the likeliest label of a response's only answer, empty for a refusal; None if it has not exactly one."""
    answers = response.get("answers")
    given = list(answers.values()) if isinstance(answers, dict) else answers
    if route not in SHAPES or not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        return None
    answer = given[0]
    if answer.get("type") == "refusal":
        return ""
    try:
        return _label(answer)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _split(exchange: Exchange) -> Iterator[Exchange]:
    request = read_decision(exchange.route, exchange.request)
    answers = exchange.response.get("answers")
    if request is None or not isinstance(answers, (list, dict)) or len(answers) != len(request.questions):
        yield exchange
        return
    shape, n = SHAPES[exchange.route], len(request.questions)
    shares = {name: _share(getattr(exchange, name), n) for name in _SHARED}
    for i, question in enumerate(request.questions):
        one = {question.name: answers.get(question.name or "")} if isinstance(answers, dict) else [answers[i]]
        changed = {
            "id": f"{exchange.id}#{i}",
            "request": shape.with_questions(request, [question], request.model),
            "response": {**exchange.response, "answers": one},
        }
        yield exchange.model_copy(update={**changed, **shares})


def _share(amount: float | None, n: int) -> float | None:
    return None if amount is None else round(amount / n) if isinstance(amount, int) else amount / n


def _label(answer: dict[str, Any]) -> str:
    kind = answer["type"]
    if kind in ("predicate", "noul"):
        return TRUE if float(answer["probability" if kind == "predicate" else "noul"]) >= 0.5 else FALSE
    if kind == "choice":
        # System One's choices are texts; only OpenAI's are typed.
        return label_of(answer["choice"]) if isinstance(answer["probabilities"], list) else str(answer["choice"])
    probabilities = answer["probabilities"]
    if isinstance(probabilities, list):
        return str(max(probabilities, key=lambda level: float(level["probability"]))["label"])
    best = max(probabilities, key=lambda level: float(probabilities[level]))
    return systemone_shape.level_label(answer["legend"][best])
