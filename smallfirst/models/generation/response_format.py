"""Which form a written answer has: its task's own, or the one its request asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallfirst.errors import ConfigError, RequestRefused
from smallfirst.models.generation.grammar import Grammar, GrammarCache
from smallfirst.models.protocol import ResponseFormat
from smallfirst.tasks.json.schema import closed_schema

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of OpenAI's `json_object`."""


class AnswerForm:
    """The form of one model's answers; with none of its own, each request may name one."""

    def __init__(self, own: Mapping[str, Any] | None, tokenizer: Any, *, name: str) -> None:
        """`own` is the schema that every answer follows, if there is one. Raises ConfigError if it makes no grammar."""
        self._own, self._name = own, name
        self._own_grammar = Grammar.compile(own, tokenizer) if own is not None else None
        self._asked = GrammarCache(tokenizer)

    async def of(self, wanted: ResponseFormat | None) -> Grammar | None:
        """The grammar that an answer follows; None if it is free text.

        Raises RequestRefused if the request's schema makes no grammar, or is not the one that this model writes.
        """
        if self._own is not None:
            if wanted is not None and wanted.kind == "json_schema" and not _same(wanted.json_schema, self._own):
                raise RequestRefused(
                    f"response_format: the form of {self._name}'s answers is fixed by its task, and this schema is "
                    "another one; leave response_format out, or ask for a json_object"
                )
            return self._own_grammar
        if wanted is None:
            return None
        try:
            return await self._asked.grammar(ANY_OBJECT if wanted.kind == "json_object" else wanted.json_schema)
        except ConfigError as error:
            raise RequestRefused(f"response_format: {error.args[0]}") from None

    def close(self) -> None:
        """Nothing back; no further schema is compiled."""
        self._asked.close()


def _same(schema: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """True if a task with this schema would have this one of its own."""
    if dict(schema) == dict(own):
        return True
    try:
        return bool(closed_schema(dict(schema)) == dict(own))
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError):
        return False
