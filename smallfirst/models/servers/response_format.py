"""What an answer must look like, kept by an engine that is told, checked and asked once more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from smallfirst.errors import BadAnswer, ConfigError, RequestRefused
from smallfirst.models.protocol import Completion, ResponseFormat
from smallfirst.models.servers.schema_constraint import Constraint

SHOWN_CHARACTERS = 200


class Form(NamedTuple):
    """What an answer must look like."""

    grammar: str | None
    """In llama.cpp's language; None for free text."""
    is_kept_by: Callable[[str], bool]
    """Whether a finished answer does."""
    answers: tuple[str, ...] = ()
    """The only answers that there are, if they are so few."""
    schema: Mapping[str, Any] | None = None
    """The schema, if it is JSON."""


FREE = Form(None, lambda text: True)


def form_of(schema: Mapping[str, Any]) -> Form:
    """JSON of a schema. Raises ConfigError if no answer can be written under it."""
    constraint = Constraint.of(schema)
    return Form(constraint.grammar, constraint.is_kept_by, schema=schema)


async def form_asked(wanted: ResponseFormat | None) -> Form:
    """The form that a request asks for. Raises RequestRefused if no answer can be written in it."""
    if wanted is None:
        return FREE
    try:
        return await asyncio.to_thread(form_of, wanted.json_schema if wanted.kind == "json_schema" else ANY_OBJECT)
    except ConfigError as error:
        raise RequestRefused(str(error)) from None


async def in_form(form: Form, write: Callable[[bool], Awaitable[Completion]]) -> Completion:
    """What `write` gives, in its form; if it is not, what `write(True)` gives, from a prompt read anew.

    JSON that ran out of room is given as it is, and says so. Raises BadAnswer.
    """
    completion = await write(False)
    if not _done(form, completion):
        completion = await write(True)
        if not _done(form, completion):
            raise _wrong(form, completion)
    return completion


def _done(form: Form, completion: Completion) -> bool:
    """Whether the answer stands. Raises BadAnswer if asking again would not help."""
    if form.is_kept_by(completion.text):
        return True
    if completion.finish_reason == "length" and form.answers:
        raise _wrong(form, completion, hint="raise max_tokens, the answer was cut off")
    return completion.finish_reason == "length"


def _wrong(form: Form, completion: Completion, hint: str | None = None) -> BadAnswer:
    what = f"none of the {len(form.answers)} answers" if form.answers else "what its schema forbids"
    return BadAnswer(f"{completion.answered_by} wrote {what}: {completion.text[:SHOWN_CHARACTERS]!r}", hint=hint)


ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of OpenAI's `json_object`."""
