"""Recorded exchanges as discovery needs them: what was asked and answered, when, by whom and for how much."""

from __future__ import annotations

import random
import sys
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
    prompt: Prompt
    answer: Answer
    answered_by: str
    """Model that answered, or the one that was asked for where the response names none."""
    cost_usd: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    timed: bool
    """False: `at` is no more than the order in the log."""


_FACTS = tuple(name for name in Case._fields if name not in ("prompt", "answer", "answered_by"))


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
    n, rng = 0, random.Random(0)
    for exchange in one_question_each(exchanges):
        found = _case(exchange)
        if isinstance(found, str):
            left_out[found] += 1
            continue
        n += 1
        place = len(cases) if n <= most else rng.randrange(n)
        if place < most:
            cases[place : place + 1] = [_shared(found)]
    cases.sort(key=lambda case: case.at)
    return Cases(cases, dict(left_out), n)


def _shared(case: Case) -> Case:
    """Return the case with texts that others have too kept once, as long as one has them."""
    prompt = case.prompt
    return case._replace(
        prompt=prompt._replace(
            turns=tuple(turn._replace(text=sys.intern(turn.text)) for turn in prompt.turns),
            tools=sys.intern(prompt.tools),
            response_format=sys.intern(prompt.response_format),
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
    facts = {name: getattr(exchange, name) for name in _FACTS}
    return Case(prompt=prompt, answer=answer, answered_by=exchange.answered_by or exchange.model, **facts)
