"""Metrics for Prometheus. Labels take only names that the operator chose, so a client cannot create new series."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

from smallfirst.models.protocol import Completion

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
"""Upper ends of the histograms' buckets, in seconds: from a scored label on a quiet machine to the default deadline."""


class Metrics:
    """The metrics of one server."""

    def __init__(self, collectors: Iterable[Collector] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        self._requests = Counter(
            "smallfirst_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "smallfirst_request_seconds",
            "From the request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "smallfirst_first_token_seconds",
            "From the request to the first text of its answer, by the stage that answered.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "smallfirst_tokens", "Tokens of answers, by stage.", ["stage", "kind"], registry=registry
        )

    def add_gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        Gauge(name, what, registry=self._registry).set_function(value)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended after `seconds`."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_answer(self, stage: str, completion: Completion, first_token_s: float) -> None:
        """Count an answer whose first text came after `first_token_s` seconds."""
        self._first.labels(stage).observe(first_token_s)
        self._tokens.labels(stage, "prompt").inc(completion.prompt_tokens)
        self._tokens.labels(stage, "completion").inc(completion.completion_tokens)

    def render(self) -> str:
        return generate_latest(self._registry).decode()


MEDIA_TYPE = CONTENT_TYPE_LATEST
