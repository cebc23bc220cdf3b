"""Recorded exchanges as discovery needs them: what was asked and answered, when, by whom and for how much."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from smallfirst.traffic.decisions.exchanges import one_question_each
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.messages import Answer, Prompt, read_answer, read_prompt

_MOST_CHARACTERS = 100_000
MOST_CASES = 100_000
"""Cases that are held; of more, so many are drawn at random, which settles shares to a fraction of a percent."""


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
    n: int
    """Cases of which `cases` were drawn."""


def read_cases(exchanges: Iterable[Exchange], most: int = MOST_CASES) -> Cases:
    """Return the exchanges that ask and answer in words, at most so many; typed decisions as one case a question.

    Of more cases each is drawn with the same probability (Vitter's algorithm R, fixed seed), so memory is bounded.
    """
    cases: list[Case] = []
    left_out: Counter[str] = Counter()
    texts: dict[str, str] = {}
    n, rng = 0, random.Random(0)
    for exchange in one_question_each(exchanges):
        found = _case(exchange)
        if isinstance(found, str):
            left_out[found] += 1
            continue
        n += 1
        place = len(cases) if n <= most else rng.randrange(n)
        if place < most:
            cases[place : place + 1] = [_shared(found, texts)]
    cases.sort(key=lambda case: case.at)
    return Cases(cases, dict(left_out), n)


def _shared(case: Case, texts: dict[str, str]) -> Case:
    """Return the case with texts that others have too kept once, in `texts`."""
    prompt = case.prompt
    return case._replace(
        prompt=prompt._replace(
            turns=tuple(turn._replace(text=texts.setdefault(turn.text, turn.text)) for turn in prompt.turns),
            tools=texts.setdefault(prompt.tools, prompt.tools),
            response_format=texts.setdefault(prompt.response_format, prompt.response_format),
        )
    )


def _case(exchange: Exchange) -> Case | str:
    """Return the case, or why it is none."""
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
    return Case(
        exchange.id,
        exchange.at,
        exchange.route,
        prompt,
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
