"""OpenAI's `POST /v1/decisions`: requests with the limits that its reference gives, answers in the order of questions.

Questions are read strictly, since their answers depend on every word. Of the input, texts and JSON are read; options
and the order of calls are left to the model that is asked. Source: `types/decision.py` and
`types/decision_create_params.py` of openai-python 3.57.0; levels as promptfoo checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from smallfirst.traffic.wire.questions import (
    FALSE,
    TRUE,
    DecisionRequest,
    Option,
    Question,
    Usage,
    Verdict,
    as_number,
    as_text,
    confidence_of,
    label_of,
    predicate_options,
)

ROUTE = "/v1/decisions"
MAX_QUESTIONS, MAX_CHOICES, MAX_LEVELS = 400, 255, 10


class _Read(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, hide_input_in_errors=True)


class Part(_Read):
    """A part of a content: a text, an image, or JSON that is read as text."""

    type: Literal["input_text", "input_image", "input_json", "output_text", "refusal"]
    text: str = ""
    refusal: str = ""
    data: dict[str, Any] | list[dict[str, Any]] = {}


_Content = str | list[Part]


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
    Discriminator(lambda value: f"<{value.get('type')}>"[:99] if isinstance(value, dict) else "<>"),
]
"""Marks in pointed brackets are no part of the place that an error names."""


class Body(_Strict):
    """A request."""

    model: Annotated[str, Field(min_length=1)]
    input: str | Annotated[list[Item], Field(min_length=1)]
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


def read_request(body: dict[str, Any]) -> DecisionRequest:
    """Return a request's questions. Raise pydantic.ValidationError naming every broken rule."""
    parsed = Body.model_validate(body)
    questions = tuple(_question(one, raw) for one, raw in zip(parsed.questions, body["questions"], strict=True))
    state, has_media = _state(parsed.input)
    return DecisionRequest(parsed.model, state, questions, body, has_media)


def with_questions(request: DecisionRequest, questions: Sequence[Question], model: str) -> dict[str, Any]:
    """Return a body of this shape with these of its questions alone."""
    return {**request.raw, "model": model, "questions": [question.raw for question in questions]}


def read_label(answer: dict[str, Any]) -> str:
    """Return the likeliest label of an answer. Raise KeyError, TypeError or ValueError if it has another form."""
    if answer["type"] == "predicate":
        return TRUE if float(answer["probability"]) >= 0.5 else FALSE
    if answer["type"] == "choice":
        return label_of(answer["choice"])
    return str(max(answer["probabilities"], key=lambda level: float(level["probability"]))["label"])


def read_response(response: dict[str, Any], questions: Sequence[Question]) -> list[Verdict]:
    """Return the verdict on each question. Raise ValueError where an answer is missing or has another form."""
    answers = response.get("answers")
    if not isinstance(answers, list) or len(answers) != len(questions):
        raise ValueError(f"{len(questions)} answers expected")
    return [_verdict(answer, question) for answer, question in zip(answers, questions, strict=True)]


def write_response(
    model: str, questions: Sequence[Question], verdicts: Sequence[Verdict], usage: Usage
) -> dict[str, Any]:
    """Return the response's body."""
    return {
        "answers": [_answer(question, verdict) for question, verdict in zip(questions, verdicts, strict=True)],
        "model": model,
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
    }


def _parts(content: Any) -> tuple[str, bool]:
    if isinstance(content, str):
        return content, False
    read = [part for part in content if part.type != "input_image"]
    texts = [as_text(part.data) if part.type == "input_json" else part.text or part.refusal for part in read]
    return "\n".join(texts), len(texts) < len(content)


def _state(given: Any) -> tuple[str | dict[str, Any] | list[Any], bool]:
    if isinstance(given, str):
        return given, False
    if len(given) == 1 and given[0].role == "user":
        content = given[0].content
        one_json = isinstance(content, list) and [part.type for part in content] == ["input_json"]
        return (content[0].data, False) if one_json else _parts(content)
    turns, has_media = [], False
    for item in given:
        if item.type.endswith("_call"):
            turns.append({"role": "assistant", "call": item.name, "content": item.arguments or item.input or ""})
            continue
        text, media = _parts(item.content if item.type == "message" else item.output)
        turns.append({"role": item.role, "content": text})
        has_media = has_media or media
    return turns, has_media


def _question(asked: Any, raw: dict[str, Any]) -> Question:
    text, has_media = _parts(asked.instructions)
    options = predicate_options()
    if isinstance(asked, ChoiceQuestion):
        options = tuple(Option(label_of(one.value), one.description or "", one.value) for one in asked.choices)
    elif isinstance(asked, ScoreQuestion):
        options = tuple(Option(one.label, one.description or "", one.label) for one in asked.levels)
    return Question(asked.type, text, options, asked.name, raw, has_media)


def _verdict(answer: Any, question: Question) -> Verdict:
    kind = answer.get("type") if isinstance(answer, dict) else None
    if kind == "refusal":
        return Verdict(raw=answer)
    if kind != question.kind:
        raise ValueError(f"an answer to a {question.kind} expected, not {kind!r}")
    try:
        if kind == "predicate":
            true = float(answer["probability"])
            return Verdict((true, 1 - true), raw=answer)
        given = {one["value"]: float(one["probability"]) for one in answer["probabilities"]}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"a {kind} without its probabilities") from None
    keys = range(len(question.options)) if kind == "score" else [option.value for option in question.options]
    probabilities = tuple(given.get(key, 0.0) for key in keys)
    confidence = answer.get("confidence")
    return Verdict(probabilities, as_number(confidence), answer)


def _answer(question: Question, verdict: Verdict) -> dict[str, Any]:
    if verdict.refused:
        return {"type": "refusal", "name": question.name}
    if verdict.raw is not None:
        return verdict.raw
    if question.kind == "predicate":
        return {"type": "predicate", "name": question.name, "probability": verdict.probabilities[0]}
    confidence = verdict.confidence
    if confidence is None:
        confidence = confidence_of(question.kind, verdict.probabilities)
    pairs = list(zip(question.options, verdict.probabilities, strict=True))
    if question.kind == "choice":
        said: dict[str, Any] = {"choice": question.options[verdict.best].value}
        listed = [{"value": option.value, "probability": p} for option, p in pairs]
    else:
        said = {"score": verdict.expected}
        listed = [{"value": i, "label": option.label, "probability": p} for i, (option, p) in enumerate(pairs)]
    return {"type": question.kind, "name": question.name, **said, "confidence": confidence, "probabilities": listed}
