"""Task kinds: classify, extract, answer, chat. Each owns its prompt, its parser and its metrics."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from smallfirst.tasks.answer import Answer
from smallfirst.tasks.chat import Chat
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract


def _kind(value: Any) -> str:
    found = value.get("kind", "classify") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(found)


AnyTask = Annotated[
    Annotated[Classify, pydantic.Tag("classify")]
    | Annotated[Extract, pydantic.Tag("extract")]
    | Annotated[Answer, pydantic.Tag("answer")]
    | Annotated[Chat, pydantic.Tag("chat")],
    pydantic.Discriminator(_kind),
]
"""Any task record; a file without `kind` holds a classification."""
