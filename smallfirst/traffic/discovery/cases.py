"""Recorded exchanges as discovery needs them: what was asked and answered, when, by whom and for how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from smallfirst.traffic.decisions.exchanges import one_question_each
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.messages import Answer, Prompt, read_answer, read_prompt

_MOST_CHARACTERS = 100_000


class Case(NamedTuple):
    """A request with messages and the answer that it got."""

    id: str
    at: datetime
    route: str
    prompt: Prompt
    answer: Answer
    answered_by: str
    """Model that answered, or the one that was asked for where the response names none."""
    upstream: str
    cost_usd: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    timed: bool
    """False: `at` is no more than the order in the log."""


class Cases(NamedTuple):
    """What can be looked at, and what cannot."""

    cases: list[Case]
    """Oldest first."""
    left_out: dict[str, int]
    """Numbers of other exchanges by reason."""


def read_cases(exchanges: Iterable[Exchange]) -> Cases:
    """Return the exchanges that ask and answer in words; typed decisions as one case a question."""
    cases: list[Case] = []
    left_out: Counter[str] = Counter()
    texts: dict[str, str] = {}
    for exchange in one_question_each(exchanges):
        found = _case(exchange, texts)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            cases.append(found)
    cases.sort(key=lambda case: case.at)
    return Cases(cases, dict(left_out))


def _case(exchange: Exchange, texts: dict[str, str]) -> Case | str:
    """Return the case, or why it is none; equal long texts are kept once, in `texts`."""
    prompt = read_prompt(exchange.route, exchange.request)
    if prompt is None:
        return f"{exchange.route}: no messages"
    if exchange.status >= 400:
        return "answered with an error"
    answer = read_answer(exchange.route, exchange.response)
    if answer is None:
        return "no answer recorded"
    if sum(len(turn.text) for turn in prompt.turns) > _MOST_CHARACTERS:
        return f"longer than {_MOST_CHARACTERS:,} characters"
    turns = tuple(turn._replace(text=texts.setdefault(turn.text, turn.text)) for turn in prompt.turns)
    return Case(
        exchange.id,
        exchange.at,
        exchange.route,
        prompt._replace(
            turns=turns,
            tools=texts.setdefault(prompt.tools, prompt.tools),
            response_format=texts.setdefault(prompt.response_format, prompt.response_format),
        ),
        answer,
        exchange.answered_by or exchange.model,
        exchange.upstream,
        exchange.cost_usd,
        exchange.latency_ms,
        exchange.prompt_tokens,
        exchange.cached_tokens,
        exchange.completion_tokens,
        exchange.timed,
    )
