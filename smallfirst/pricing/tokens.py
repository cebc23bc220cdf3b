"""The tokens of a request by the kinds that have prices of their own, read from any provider's `usage`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from smallfirst.records import Record

Count = Annotated[int, Field(ge=0)]


class TokenUsage(Record):
    """Billed tokens of one request."""

    prompt_tokens: Count = 0
    """All tokens read, cached ones and those written to a cache included, as OpenAI counts them."""
    cached_tokens: Count = 0
    """Of `prompt_tokens`, those read from the provider's cache."""
    cache_write_tokens: Count = 0
    """Of `prompt_tokens`, those written to the provider's cache."""
    image_tokens: Count = 0
    """Of `prompt_tokens`, those of images, where the provider counts them apart."""
    completion_tokens: Count = 0
    """All tokens written, reasoning included."""
    reasoning_tokens: Count = 0
    """Of `completion_tokens`, those of reasoning that the client does not see."""


def whole(value: Any) -> int | None:
    """Return a whole number that is not negative, also one that a table holds as text or float; else None."""
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number >= 0 else None
