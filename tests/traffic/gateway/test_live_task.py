"""A passed answer costs what it states, then its tokens at the proxy's prices, then what recorded answers did."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from fixtures.takeover import TEACHER, source

from smallfirst.base.stats.intervals import upper_bound
from smallfirst.ledger.sums import HOUR_S
from smallfirst.models.pricing import PriceBook, TokenPrice
from smallfirst.models.protocol import Completion
from smallfirst.traffic.gateway.draft_watch import FALSE_ALARMS, WEEK_H, DraftWatch
from smallfirst.traffic.gateway.http import TaskRequest
from smallfirst.traffic.gateway.live_task import (
    MAX_FORMS,
    MAX_TENANTS,
    N_RECENT,
    N_SAME,
    Forms,
    Upstream,
    Watches,
    WordingWatch,
)

USAGE = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 900}}
PRICE = TokenPrice(input_usd_per_mtok=2, cached_usd_per_mtok=0.2, output_usd_per_mtok=10, tiers={"flex": 0.5})
ANSWER = {"model": TEACHER, "choices": [{"message": {"role": "assistant", "content": "Queue: billing"}}]}


def read(prices: PriceBook | None = None, **more: Any) -> Completion:
    async def again() -> tuple[int, dict[str, Any] | None]:
        raise NotImplementedError

    body = {"model": TEACHER, "messages": [{"role": "user", "content": "x" * 40}]}
    asked = TaskRequest("1", "/v1/chat/completions", body, "x", again, source().answer_format)
    upstream = Upstream(source(), prices or PriceBook(tokens={TEACHER: PRICE}))
    upstream.usual_usd = 0.0001
    found = upstream.read(asked, ANSWER | more)
    assert found is not None
    return found


def test_a_stated_cost_comes_first_then_a_price_then_the_mean_of_recorded_answers() -> None:
    found = read(usage=USAGE)
    assert found.cost_usd == pytest.approx((100 * 2 + 900 * 0.2 + 10 * 10) * 1e-6, rel=1e-12)
    assert (found.prompt_tokens, found.estimated) == (1000, False)
    assert read(usage=USAGE, service_tier="flex").cost_usd == pytest.approx(found.cost_usd / 2, rel=1e-12)
    assert read(usage=USAGE | {"cost": 0.004}).cost_usd == 0.004
    estimated = read()
    assert estimated.estimated
    assert estimated.cost_usd == pytest.approx((10 * 2 + 4 * 10) * 1e-6, rel=1e-12)  # 40 and 14 characters
    (line,) = read(PriceBook(), usage=USAGE).charges
    assert (line.usd, line.source) == (0.0001, "the mean cost of recorded answers")


def test_a_wording_that_nobody_follows_any_more_has_changed():
    watch = WordingWatch()
    for n in range(10):
        assert not watch.followed(f"case {n} is about {n}")
    found = [watch.missed() for _ in range(N_RECENT)]
    first = next(i for i, why in enumerate(found) if why)
    assert first + 1 == 36  # 36 of the last 40 follow none
    assert "36 of the last 40 requests" in found[first]


def usual_cases(n: int) -> list[str]:
    return [f"{n} is the number of a case with words of {n} own" for n in range(n)]


def noticed(watch: WordingWatch, cases: Iterable[str]) -> tuple[int, str]:
    """How many cases it took, and what was said; 0 and nothing if nothing was."""
    return next(((n, why) for n, text in enumerate(cases, 1) if (why := watch.followed(text))), (0, ""))


@pytest.mark.parametrize(("recorded", "most"), [(240, 30), (1000, 14), (5000, N_SAME)])
def test_instructions_that_grew_into_the_slot_are_noticed(recorded: int, most: int) -> None:
    forms = Forms(usual_cases(recorded))
    for case in ("case {}\nAnswer in German, please.", "Think step by step: {}", "<ticket version='2'>{}</ticket>"):
        watch = WordingWatch(forms)
        assert not noticed(watch, usual_cases(20))[0]
        n, why = noticed(watch, (case.format(n) for n in range(100)))
        assert N_SAME <= n <= most
        assert f"the last {n} cases all" in why
    assert not noticed(WordingWatch(forms), ["the very same question again"] * 100)[0]  # is no wording
    assert not noticed(WordingWatch(), (f"Think step by step: {n}" for n in range(100)))[0]  # nothing is known


SALUTATION = "Sehr geehrte Damen und Herren,"


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8, 0.95])
def test_cases_that_usually_begin_alike_are_no_evidence(share: float) -> None:
    draw = random.Random(1)

    def cases(n: int) -> list[str]:
        return [f"{SALUTATION if draw.random() < share else draw.random()} about {draw.random()}" for _ in range(n)]

    for _ in range(5):
        assert noticed(WordingWatch(Forms(cases(500))), cases(2_000)) == (0, "")
    weekend = (f"{SALUTATION} {n}" for n in range(500))  # which begin so without exception
    assert noticed(WordingWatch(Forms(cases(500))), weekend) == (0, "")


def test_a_tenant_whose_cases_are_its_own_from_the_first_on_has_changed_nothing() -> None:
    watches = Watches({"ada": Forms(usual_cases(1000))})
    assert noticed(watches.of("bob"), (f"{SALUTATION} {n}" for n in range(500))) == (0, "")
    assert noticed(watches.of("ada"), (f"{SALUTATION} {n}" for n in range(500)))[0] <= 14


def test_long_cases_are_not_kept_and_few_forms_are():
    watch = WordingWatch()
    for n in range(3 * MAX_FORMS):
        watch.followed(f"{n}" * 10_000 + f"{n}")
    assert len(watch._own._counts) <= MAX_FORMS + 2
    assert max(len(text) for _, text in watch._own._counts) < 20


def test_each_tenant_is_watched_apart_and_of_many_the_last_ones():
    watches = Watches()
    for _ in range(N_RECENT):
        watches.of("ada").missed()
    assert not watches.of("bob").missed()
    assert watches.of("ada").missed()
    for n in range(MAX_TENANTS - 1):
        watches.of(str(n))
        watches.of("ada")
    assert watches.of("ada").missed()
    assert len(watches._by_tenant) == MAX_TENANTS


def drafted(watch: DraftWatch, hours: range, share: Callable[[int], float], n: int = 20) -> tuple[DraftWatch, str]:
    """Twenty drafts an hour, of which a share differs; each hour the watch comes from its JSON, as after a restart."""
    for hour in hours:
        drafts = [(hour + i) % n < share(hour) * n for i in range(n)]
        watch, why = DraftWatch.model_validate_json(watch.model_dump_json()).add(drafts, hour * HOUR_S)
        if why:
            return watch, why
    return watch, ""


def weekend(hour: int) -> float:
    return 0.5 if hour % WEEK_H >= 120 else 0.2


def test_a_week_says_how_often_drafts_usually_differ_and_its_weekend_is_no_evidence() -> None:
    start = 490_000 // WEEK_H * WEEK_H
    learning, _ = drafted(DraftWatch(), range(start, start + WEEK_H), weekend)
    assert (learning.usual, learning.since_hour) == (0.0, start)
    assert "is learnt until 2025-11-27 00:00 UTC, from 400 at least (3,360 so far)" in learning.in_words
    learnt, _ = drafted(learning, range(start + WEEK_H, start + WEEK_H + 1), weekend)
    # Of its eight parts of 400 drafts the worst has 200 that differ.
    assert learnt.usual == pytest.approx(upper_bound(200, 400, confidence=1 - FALSE_ALARMS / 8))
    later, why = drafted(learnt, range(start + WEEK_H + 1, start + 9 * WEEK_H), weekend)
    assert not why
    assert later.in_words.startswith("7,676 of 26,860 drafts that were not sure enough differ from the large model's")
    again, why = drafted(later, range(start + 9 * WEEK_H, start + 10 * WEEK_H), lambda hour: 0.8)
    assert "more often than 56.9 % at most in a week's worst hours; evidence 50 to 1" in why
    assert again == DraftWatch()


def test_few_drafts_a_week_say_what_is_usual_when_they_are_enough() -> None:
    hours = range(300)
    watch, _ = drafted(DraftWatch(), hours, lambda hour: 0.5, n=1)
    assert len(watch.hours) == 300
    assert not drafted(watch, range(300, 399), lambda hour: 0.5, n=1)[0].usual
    assert drafted(watch, range(300, 400), lambda hour: 0.5, n=1)[0].usual
