"""The body of OpenAI's `POST /v1/decisions`, with the limits that its reference gives.

Source: `types/decision_create_params.py` of openai-python 3.57.0; images and levels as promptfoo checks them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

MAX_QUESTIONS, MAX_CHOICES, MAX_LEVELS, MAX_IMAGES = 400, 255, 10, 128
MAX_JSON_LEVELS, MAX_JSON_VALUES, MAX_JSON_BYTES = 32, 10_000, 256 * 1024


_Breakpoint = dict[Literal["mode"], Literal["explicit"]] | None
_Status = Literal["in_progress", "completed", "incomplete"] | None


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _Text(_Strict):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: _Breakpoint = None


class ImagePart(_Strict):
    """An image as a data URL or an address."""

    type: Literal["input_image"]
    image_url: Annotated[str, Field(min_length=1)]
    detail: Literal["low", "high", "auto", "original"] | None = None
    prompt_cache_breakpoint: _Breakpoint = None


class JsonPart(_Strict):
    """A JSON object, or a list of objects, that is read as text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    @pydantic.field_validator("data")
    @classmethod
    def _is_limited(cls, data: Any) -> Any:
        levels, values = _size(data)
        if levels > MAX_JSON_LEVELS or values > MAX_JSON_VALUES:
            raise ValueError(f"at most {MAX_JSON_LEVELS} levels and {MAX_JSON_VALUES:,} values")
        if len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_JSON_BYTES:
            raise ValueError("at most 256 KiB of compact JSON")
        return data


class _Said(_Strict):
    type: Literal["output_text"]
    text: str


class _Refused(_Strict):
    type: Literal["refusal"]
    refusal: str


def _by_type(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if isinstance(kind, str) else "<>"


def _text_or_list(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


def _item(value: Any) -> str:
    if isinstance(value, dict) and value.get("type", "message") == "message":
        role = value.get("role")
        return f"<{role}>" if isinstance(role, str) else "<>"
    return _by_type(value)


_Part = Annotated[
    Annotated[_Text, Tag("<input_text>")]
    | Annotated[ImagePart, Tag("<input_image>")]
    | Annotated[JsonPart, Tag("<input_json>")],
    Discriminator(_by_type),
]
_Evidence = Annotated[
    Annotated[_Text, Tag("<input_text>")] | Annotated[ImagePart, Tag("<input_image>")], Discriminator(_by_type)
]
_OwnPart = Annotated[
    Annotated[_Said, Tag("<output_text>")] | Annotated[_Refused, Tag("<refusal>")], Discriminator(_by_type)
]
_String = Annotated[str, Tag("<text>")]
_Content = Annotated[_String | Annotated[list[_Part], Tag("<list>")], Discriminator(_text_or_list)]


class UserMessage(_Strict):
    """What the user says: text, images and JSON."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: _Content


class _Instructing(_Strict):
    type: Literal["message"] = "message"
    role: Literal["system", "developer"]
    content: Annotated[_String | Annotated[list[_Text], Tag("<list>")], Discriminator(_text_or_list)]


class _Assistant(_Strict):
    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: Annotated[_String | Annotated[list[_OwnPart], Tag("<list>")], Discriminator(_text_or_list)]
    phase: Literal["commentary", "final_answer"] | None = None


class Call(_Strict):
    """A call of a function or of a custom tool."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: str
    name: str
    arguments: str | None = None
    input: str | None = None
    id: str | None = None
    namespace: str | None = None
    status: _Status = None

    @pydantic.model_validator(mode="after")
    def _has_its_input(self) -> Call:
        wanted, other = ("arguments", "input") if self.type == "function_call" else ("input", "arguments")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"a {self.type} has `{wanted}`, and no `{other}`")
        return self


class CallOutput(_Strict):
    """What a call gave."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Annotated[_String | Annotated[list[_Evidence], Tag("<list>")], Discriminator(_text_or_list)]
    id: str | None = None
    status: _Status = None


_Item = Annotated[
    Annotated[UserMessage, Tag("<user>")]
    | Annotated[_Instructing, Tag("<system>")]
    | Annotated[_Instructing, Tag("<developer>")]
    | Annotated[_Assistant, Tag("<assistant>")]
    | Annotated[Call, Tag("<function_call>")]
    | Annotated[Call, Tag("<custom_tool_call>")]
    | Annotated[CallOutput, Tag("<function_call_output>")]
    | Annotated[CallOutput, Tag("<custom_tool_call_output>")],
    Discriminator(_item),
]


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


class _CacheOptions(_Strict):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] = "30m"


class Body(_Strict):
    """A request."""

    model: Annotated[str, Field(min_length=1)]
    input: Annotated[_String | Annotated[list[_Item], Field(min_length=1), Tag("<list>")], Discriminator(_text_or_list)]
    questions: Annotated[list[_Question], Field(min_length=1, max_length=MAX_QUESTIONS)]
    prompt_cache_key: str | None = None
    prompt_cache_options: _CacheOptions | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None

    @pydantic.field_validator("questions")
    @classmethod
    def _have_their_names(cls, questions: list[Any]) -> list[Any]:
        names = [question.name for question in questions if question.name is not None]
        if len(set(names)) < len(names):
            raise ValueError("the names of questions must be unique")
        return questions

    @pydantic.field_validator("input")
    @classmethod
    def _answers_its_calls_and_shows_few_images(cls, items: Any) -> Any:
        called: set[tuple[str, str]] = set()
        given = items if isinstance(items, list) else []
        contents = [getattr(item, "content", getattr(item, "output", "")) for item in given]
        if sum(isinstance(part, ImagePart) for parts in contents for part in parts) > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images")
        for item in given:
            if isinstance(item, Call):
                called.add((f"{item.type}_output", item.call_id))
            elif isinstance(item, CallOutput) and (item.type, item.call_id) not in called:
                raise ValueError("each tool output must name the `call_id` of a call before it")
        return items


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
