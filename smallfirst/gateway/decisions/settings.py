"""Who answers typed questions that no small model answers: the settings `decisions` of gateway.yaml."""

from __future__ import annotations

from typing import Any, Literal

from smallfirst.records import Record


class DecisionSettings(Record):
    """The upstream of `/v1/decisions` and `/v1/systemone`. Without it each passes to its model's upstream as it is."""

    upstream: str
    """Name of an upstream."""
    shape: Literal["openai", "systemone", "chat"] = "openai"
    """What it speaks: OpenAI's decisions, TypeSafe's System One, or chat completions alone. A chat model gives a label
    and no probabilities: each answer says that they are uncalibrated."""
    model: str = ""
    """Model that it is asked for; left out: the one that the application asks for."""
    extra_body: dict[str, Any] = {}
    """Added to requests of the shape `chat`, such as `{temperature: 0}`."""
