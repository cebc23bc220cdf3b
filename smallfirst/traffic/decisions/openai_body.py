"""The body of OpenAI's `POST /v1/decisions`: what is read of it, with the limits that its reference gives.

Questions are read strictly, since their answers depend on every word. Of the input, texts and JSON are read; options
and the order of calls are left to the model that is asked. Source: `types/decision_create_params.py` of openai-python
3.57.0; levels as promptfoo checks them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

MAX_QUESTIONS, MAX_CHOICES, MAX_LEVELS = 400, 255, 10
MAX_JSON_LEVELS, MAX_JSON_VALUES, MAX_JSON_BYTES = 32, 10_000, 256 * 1024


class _Read(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, hide_input_in_errors=True)


class Part(_Read):
    """A part of a content: a text, an image, or JSON that is read as text."""

    type: Literal["input_text", "input_image", "input_json", "output_text", "refusal"]
    text: str = ""
    refusal: str = ""
    data: dict[str, Any] | list[dict[str, Any]] = {}

    @pydantic.field_validator("data")
    @classmethod
    def _is_limited(cls, data: Any) -> Any:
        levels, values = _size(data)
        if levels > MAX_JSON_LEVELS or values > MAX_JSON_VALUES:
            raise ValueError(f"at most {MAX_JSON_LEVELS} levels and {MAX_JSON_VALUES:,} values")
        if len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_JSON_BYTES:
            raise ValueError("at most 256 KiB of compact JSON")
        return data


def _by_type(value: Any) -> str:
    return f"<{value.get('type')}>"[:99] if isinstance(value, dict) else "<>"


def _text_or_list(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


_String = Annotated[str, Tag("<text>")]
_Content = Annotated[_String | Annotated[list[Part], Tag("<list>")], Discriminator(_text_or_list)]


class Item(_Read):
    """A message, a call of a tool, or what it gave."""

    type: Literal["message", "function_call", "custom_tool_call", "function_call_output", "custom_tool_call_output"] = (
        "message"
    )
    role: Literal["user", "system", "developer", "assistant", "tool"] = "tool"
    content: _Content = ""
    output: _Content = ""
    name: str = ""
    arguments: str | None = None
    input: str | None = None

    @pydantic.model_validator(mode="after")
    def _has_its_role(self) -> Item:
        if (self.type == "message") == (self.role == "tool"):
            raise ValueError("a message has the `role` user, system, developer or assistant")
        return self


class _Strict(_Read):
    model_config = pydantic.ConfigDict(extra="forbid")


class _Choice(_Strict):
    value: str | bool
    description: str | None = None


class _Level(_Strict):
    label: str
    description: str | None = None


class _Asked(_Strict):
    name: str | None = None
    instructions: _Content


class PredicateQuestion(_Asked):
    """Is a statement true?"""

    type: Literal["predicate"]


class ChoiceQuestion(_Asked):
    """Which of the options is it?"""

    type: Literal["choice"]
    choices: Annotated[list[_Choice], Field(min_length=2, max_length=MAX_CHOICES)]

    @pydantic.field_validator("choices")
    @classmethod
    def _are_unique(cls, choices: list[_Choice]) -> list[_Choice]:
        if len({(type(choice.value), choice.value) for choice in choices}) < len(choices):
            raise ValueError("each choice must have a value of its own")
        return choices


class ScoreQuestion(_Asked):
    """Which of the ordered levels is it?"""

    type: Literal["score"]
    levels: Annotated[list[_Level], Field(min_length=2, max_length=MAX_LEVELS)]


_Question = Annotated[
    Annotated[PredicateQuestion, Tag("<predicate>")]
    | Annotated[ChoiceQuestion, Tag("<choice>")]
    | Annotated[ScoreQuestion, Tag("<score>")],
    Discriminator(_by_type),
]


class Body(_Strict):
    """A request."""

    model: Annotated[str, Field(min_length=1)]
    input: Annotated[_String | Annotated[list[Item], Field(min_length=1), Tag("<list>")], Discriminator(_text_or_list)]
    questions: Annotated[list[_Question], Field(min_length=1, max_length=MAX_QUESTIONS)]
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None

    @pydantic.field_validator("questions")
    @classmethod
    def _have_their_names(cls, questions: list[Any]) -> list[Any]:
        names = [question.name for question in questions if question.name is not None]
        if len(set(names)) < len(names):
            raise ValueError("the names of questions must be unique")
        return questions


def _size(value: Any) -> tuple[int, int]:
    """Return the container levels and the number of values of a JSON value, without recursion."""
    level, values, here = 0, 0, [value]
    while here:
        containers = [one for one in here if isinstance(one, (dict, list))]
        level, values = level + bool(containers), values + len(here)
        here = [child for one in containers for child in (one.values() if isinstance(one, dict) else one)]
        if level > MAX_JSON_LEVELS:
            break
    return level, values
