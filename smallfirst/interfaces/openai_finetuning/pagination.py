"""Pages of a list, errors that name the invalid field, and times, as in all of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import pydantic

from smallfirst.serving.plugins import ApiError, validation_error

B = TypeVar("B", bound=pydantic.BaseModel)


def page(
    items: Sequence[Mapping[str, Any]], query: Sequence[tuple[str, str]], *, default: int, maximum: int
) -> dict[str, Any]:
    """Return the page of the list that `limit` and `after` ask for. Raise ApiError 400 if they cannot be read."""
    parameters = dict(query)
    text = parameters.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= maximum):
        raise ApiError(400, f'limit is "{text[:20]}"; it must be a number from 1 to {maximum}.', param="limit")
    start = 0
    if "after" in parameters:
        ids = [item["id"] for item in items]
        if parameters["after"] not in ids:
            raise ApiError(400, f'after is "{parameters["after"][:64]}", which is not in this list.', param="after")
        start = ids.index(parameters["after"]) + 1
    shown = items[start : start + int(text)]
    return {
        "object": "list",
        "data": list(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > start + len(shown),
    }


def parse_body(kind: type[B], values: Mapping[str, Any]) -> B:
    """Return the body as a record. Raise ApiError 400 with every broken rule; `param` is the first invalid field."""
    try:
        return kind.model_validate({name: value for name, value in values.items() if value is not None})
    except pydantic.ValidationError as error:
        raise validation_error(error, kind) from None


def unix_seconds(moment: datetime | str) -> int:
    """Return the seconds since 1970 of a time, which may be ISO 8601 text."""
    return int((datetime.fromisoformat(moment) if isinstance(moment, str) else moment).timestamp())
