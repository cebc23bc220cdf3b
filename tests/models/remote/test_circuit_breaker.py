"""Retry budget and circuit breaker: sequences worked out by hand, with time in our own hands."""

from __future__ import annotations

import pytest

from smallfirst.models.remote.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, RetryBudget


class Clock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def config(**settings: float) -> CircuitBreakerConfig:
    given = {"max_consecutive_failures": 3, "min_requests": 10, "window_s": 30, "initial_open_s": 1, "max_open_s": 5}
    return CircuitBreakerConfig.model_validate({**given, **settings})


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.record_failure(breaker.enter())


def half_open(clock: Clock) -> CircuitBreaker:
    """A breaker that has opened and lets one probe through."""
    breaker = CircuitBreaker(config(), clock=clock)
    fail(breaker, 3)
    clock.now_s += 1
    return breaker


def wait_of(breaker: CircuitBreaker) -> float:
    assert breaker.enter() is None
    return breaker.remaining_open_s


# --- budget --------------------------------------------------------------------------------------


def test_a_quiet_endpoint_gets_the_burst_and_then_a_tenth_of_its_requests() -> None:
    budget = RetryBudget(share=0.1, burst=3)
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    granted = 0
    for _ in range(100):
        budget.add_request()
        granted += budget.take()
    assert granted == 10


def test_what_is_not_used_does_not_pile_up_beyond_the_burst() -> None:
    budget = RetryBudget(share=0.5, burst=2)
    for _ in range(1000):
        budget.add_request()
    assert [budget.take() for _ in range(3)] == [True, True, False]


# --- breaker -------------------------------------------------------------------------------------


def test_failures_in_a_row_open_it_and_a_success_between_does_not(clock: Clock) -> None:
    breaker = CircuitBreaker(config(), clock=clock)
    fail(breaker, 2)
    breaker.record_success(breaker.enter())
    fail(breaker, 2)
    assert breaker.remaining_open_s == 0
    fail(breaker)
    assert wait_of(breaker) == 1
    clock.now_s += 0.75
    assert wait_of(breaker) == 0.25


def test_after_the_rest_one_probe_goes_and_its_success_lets_all_in(clock: Clock) -> None:
    breaker = half_open(clock)
    probe = breaker.enter()
    assert wait_of(breaker) == 1  # nobody else, until the probe is back
    breaker.record_success(probe)
    assert breaker.remaining_open_s == 0
    assert breaker.enter() == breaker.enter()
    fail(breaker, 2)
    assert breaker.remaining_open_s == 0  # the count began anew


def test_each_failed_probe_doubles_the_rest_up_to_the_longest_and_a_success_ends_that(clock: Clock) -> None:
    breaker = CircuitBreaker(config(), clock=clock)
    fail(breaker, 3)
    rests = []
    for _ in range(4):
        clock.now_s += breaker.remaining_open_s
        fail(breaker)
        rests.append(breaker.remaining_open_s)
    assert rests == [2, 4, 5, 5]
    clock.now_s += 5
    breaker.record_success(breaker.enter())
    fail(breaker, 3)
    assert breaker.remaining_open_s == 1


def test_a_share_of_failures_opens_it_once_there_are_enough_requests(clock: Clock) -> None:
    breaker = CircuitBreaker(config(max_consecutive_failures=100), clock=clock)
    for _ in range(4):
        breaker.record_success(breaker.enter())
        fail(breaker)
    breaker.record_success(breaker.enter())
    assert breaker.remaining_open_s == 0  # 4 of 9
    fail(breaker)  # 5 of 10
    assert breaker.enter() is None
    assert breaker.reason == "5 of 10 requests failed within 30 s"


def test_failures_older_than_the_window_are_forgotten(clock: Clock) -> None:
    breaker = CircuitBreaker(config(max_consecutive_failures=100), clock=clock)
    fail(breaker, 9)
    clock.now_s += 31
    fail(breaker, 9)
    assert breaker.remaining_open_s == 0
    fail(breaker)
    assert breaker.remaining_open_s == 1


def test_what_began_before_it_opened_changes_nothing_afterwards(clock: Clock) -> None:
    breaker = CircuitBreaker(config(), clock=clock)
    early, late = breaker.enter(), breaker.enter()
    fail(breaker, 3)
    clock.now_s += 0.5
    breaker.record_success(early)
    breaker.record_failure(late)
    assert wait_of(breaker) == 0.5
    clock.now_s += 0.5
    probe = breaker.enter()
    breaker.record_success(early)
    assert wait_of(breaker) == 1
    breaker.record_success(probe)
    assert breaker.remaining_open_s == 0


def test_a_probe_whose_caller_left_may_be_repeated_at_once(clock: Clock) -> None:
    breaker = half_open(clock)
    breaker.cancel(breaker.enter())
    breaker.record_success(breaker.enter())
    assert breaker.remaining_open_s == 0


def test_a_probe_that_is_answered_lets_others_in_and_its_broken_end_counts_as_one_failure(clock: Clock) -> None:
    breaker = half_open(clock)
    probe = breaker.enter()
    breaker.record_response(probe)
    assert breaker.remaining_open_s == 0
    breaker.record_failure(probe)
    fail(breaker)
    assert breaker.remaining_open_s == 0
    fail(breaker)
    assert breaker.remaining_open_s == 1
