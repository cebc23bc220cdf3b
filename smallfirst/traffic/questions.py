"""Typed questions about a text, OpenAI's `POST /v1/decisions`: requests and answers in their order.

A question's words with its options are the constant part of a prompt, and the input is the case, so each distinct
question is a task. Questions are read strictly, since their answers depend on every word. Of the input, texts and JSON
are read; options and the order of calls are left to the model that is asked. Source: `types/decision.py` and
`types/decision_create_params.py` of openai-python 3.57.0; levels as promptfoo checks them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import Field

from smallfirst.base.records import fingerprint
from smallfirst.models.pricing import TokenUsage

ROUTE = "/v1/decisions"
MAX_QUESTIONS, MAX_CHOICES, MAX_LEVELS = 400, 255, 10
TRUE, FALSE = "true", "false"
Kind = Literal["predicate", "choice", "score"]


class AnswerOption(NamedTuple):
    """One possible answer of a question."""

    label: str
    """Its name as a label of the task: unique among the options, a boolean as `true` or `false`."""
    description: str = ""
    value: str | bool = ""
    """The value of a choice as OpenAI types it; elsewhere the label."""


class Question(NamedTuple):
    """What is asked about a text."""

    kind: Kind
    instructions: str
    options: tuple[AnswerOption, ...]
    """true and false of a predicate, the choices, or the levels from the lowest to the highest."""
    name: str | None
    """As the application calls it; no part of the question."""
    raw: dict[str, Any]
    """The question as it came."""
    has_media: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(option.label for option in self.options)

    @property
    def is_task(self) -> bool:
        """Return whether a small model can learn it: text alone, and options that its labels tell apart."""
        return not self.has_media and all(self.labels) and len(set(self.labels)) == len(self.labels)

    @property
    def text(self) -> str:
        """Return the question in words; equal questions, equal text, whatever their names."""
        if self.kind == "predicate":
            return f"{self.instructions}\nIs this true of the text? Answer true or false."
        listed = "\n".join(": ".join(filter(None, option[:2])) for option in self.options)
        order = ", listed from the lowest to the highest" if self.kind == "score" else ""
        return f"{self.instructions}\n{listed}\nAnswer with one of these{order}."

    @property
    def id(self) -> str:
        """16 hex digits: equal questions, equal ids."""
        return fingerprint(self.text)


class DecisionRequest(NamedTuple):
    """Questions about one text."""

    model: str
    text: str
    """The input; JSON where it is no text."""
    questions: tuple[Question, ...]
    raw: dict[str, Any]
    """The body as it came."""
    has_media: bool = False
    """True if the input holds images, which its text leaves out."""

    def with_questions(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Return the body with these of its questions alone."""
        return {**self.raw, "questions": [question.raw for question in questions]}


class QuestionAnswer(NamedTuple):
    """The answer to one question."""

    probabilities: tuple[float, ...] = ()
    """One per option, in their order; empty for a refusal."""
    raw: dict[str, Any] | None = None
    """The answer as an upstream wrote it."""

    @property
    def refused(self) -> bool:
        return not self.probabilities

    @property
    def best(self) -> int:
        """Index of the likeliest option, the first of equals."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


# Requests


class _Read(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)


class _InputPart(_Read):
    """A part of a content: a text, an image, or JSON that is read as text."""

    type: Literal["input_text", "input_image", "input_json", "output_text", "refusal"]
    text: str = ""
    refusal: str = ""
    data: dict[str, Any] | list[dict[str, Any]] = {}


_Content = str | list[_InputPart]


class _Item(_Read):
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
    def _has_its_role(self) -> _Item:
        if (self.type == "message") == (self.role == "tool"):
            raise ValueError("a message has the `role` user, system, developer or assistant")
        return self


class _Exact(_Read):
    model_config = pydantic.ConfigDict(extra="forbid")


class _ChoiceOption(_Exact):
    value: str | bool
    description: str | None = None


class _Level(_Exact):
    label: str
    description: str | None = None


class _Predicate(_Exact):
    type: Literal["predicate"]
    name: str | None = None
    instructions: _Content

    @property
    def options(self) -> list[AnswerOption]:
        return [AnswerOption(TRUE, "", TRUE), AnswerOption(FALSE, "", FALSE)]


class _ChoiceQuestion(_Exact):
    type: Literal["choice"]
    name: str | None = None
    instructions: _Content
    choices: Annotated[list[_ChoiceOption], Field(min_length=2, max_length=MAX_CHOICES)]

    @pydantic.field_validator("choices")
    @classmethod
    def _are_unique(cls, choices: list[_ChoiceOption]) -> list[_ChoiceOption]:
        if len({(type(choice.value), choice.value) for choice in choices}) < len(choices):
            raise ValueError("each choice must have a value of its own")
        return choices

    @property
    def options(self) -> list[AnswerOption]:
        return [AnswerOption(label_of(one.value), one.description or "", one.value) for one in self.choices]


class _ScoreQuestion(_Exact):
    type: Literal["score"]
    name: str | None = None
    instructions: _Content
    levels: Annotated[list[_Level], Field(min_length=2, max_length=MAX_LEVELS)]

    @property
    def options(self) -> list[AnswerOption]:
        return [AnswerOption(one.label, one.description or "", one.label) for one in self.levels]


_AnyQuestion = Annotated[_Predicate | _ChoiceQuestion | _ScoreQuestion, Field(discriminator="type")]


class _Body(_Exact):
    model: Annotated[str, Field(min_length=1)]
    input: str | Annotated[list[_Item], Field(min_length=1)]
    questions: Annotated[list[_AnyQuestion], Field(min_length=1, max_length=MAX_QUESTIONS)]
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


def read_decision(body: dict[str, Any]) -> DecisionRequest | None:
    """Return a request's questions; None for a body that breaks a rule: its upstream judges it."""
    try:
        parsed = _Body.model_validate(body)
    except pydantic.ValidationError:
        return None
    questions = []
    for one, raw in zip(parsed.questions, body["questions"], strict=True):
        instructions, has_media = _parts(one.instructions)
        questions.append(Question(one.type, instructions, tuple(one.options), one.name, raw, has_media))
    state, has_media = _state(parsed.input)
    return DecisionRequest(parsed.model, as_text(state), tuple(questions), body, has_media)


def _parts(content: Any) -> tuple[str, bool]:
    if isinstance(content, str):
        return content, False
    read = [part for part in content if part.type != "input_image"]
    texts = [as_text(part.data) if part.type == "input_json" else part.text or part.refusal for part in read]
    return "\n".join(texts), len(texts) < len(content)


def _state(given: Any) -> tuple[Any, bool]:
    if isinstance(given, str):
        return given, False
    if len(given) == 1 and given[0].role == "user":
        return _parts(given[0].content)
    turns, has_media = [], False
    for item in given:
        if item.type.endswith("_call"):
            turns.append({"role": "assistant", "call": item.name, "content": item.arguments or item.input or ""})
            continue
        text, media = _parts(item.content if item.type == "message" else item.output)
        turns.append({"role": item.role, "content": text})
        has_media = has_media or media
    return turns, has_media


def as_text(content: Any) -> str:
    """Return text as it is, and any other JSON value as JSON."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def label_of(value: str | bool) -> str:
    """Return the label of a choice's value: booleans are `true` and `false`, texts that read so stand in quotes."""
    if isinstance(value, bool):
        return TRUE if value else FALSE
    return json.dumps(value) if value in (TRUE, FALSE) else value


# Responses


def read_label(response: dict[str, Any]) -> str | None:
    """Return the likeliest label of a response's only answer, empty for a refusal; None if it has not exactly one."""
    answers: Any = response.get("answers")
    try:
        (answer,) = answers
        if answer["type"] == "refusal":
            return ""
        if answer["type"] == "predicate":
            return TRUE if float(answer["probability"]) >= 0.5 else FALSE
        if answer["type"] == "choice":
            return label_of(answer["choice"])
        return str(max(answer["probabilities"], key=lambda level: float(level["probability"]))["label"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_response(response: dict[str, Any], questions: Sequence[Question]) -> list[QuestionAnswer]:
    """Return the answer to each question. Raise ValueError where one is missing or has another form."""
    answers = response.get("answers")
    if not isinstance(answers, list) or len(answers) != len(questions):
        raise ValueError(f"{len(questions)} answers expected")
    return [_read_answer(answer, question) for answer, question in zip(answers, questions, strict=True)]


def _read_answer(answer: Any, question: Question) -> QuestionAnswer:
    kind = answer.get("type") if isinstance(answer, dict) else None
    if kind == "refusal":
        return QuestionAnswer(raw=answer)
    if kind != question.kind:
        raise ValueError(f"an answer to a {question.kind} expected, not {kind!r}")
    try:
        if kind == "predicate":
            true = float(answer["probability"])
            return QuestionAnswer((true, 1 - true), answer)
        given = {one["value"]: float(one["probability"]) for one in answer["probabilities"]}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"a {kind} without its probabilities") from None
    keys = range(len(question.options)) if kind == "score" else [option.value for option in question.options]
    return QuestionAnswer(tuple(given.get(key, 0.0) for key in keys), answer)


def write_response(
    model: str, questions: Sequence[Question], answers: Sequence[QuestionAnswer], usage: TokenUsage
) -> dict[str, Any]:
    """Return the response's body; what an upstream wrote stays as it is."""
    return {
        "answers": [_write_answer(question, answer) for question, answer in zip(questions, answers, strict=True)],
        "model": model,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": usage.model_dump(include={"cache_write_tokens", "cached_tokens"}),
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }


def _write_answer(question: Question, answer: QuestionAnswer) -> dict[str, Any]:
    shares = answer.probabilities
    if answer.refused:
        return {"type": "refusal", "name": question.name}
    if answer.raw is not None:
        return answer.raw
    if question.kind == "predicate":
        return {"type": "predicate", "name": question.name, "probability": shares[0]}
    pairs = list(zip(question.options, shares, strict=True))
    if question.kind == "choice":
        said: dict[str, Any] = {"choice": question.options[answer.best].value}
        listed = [{"value": option.value, "probability": p} for option, p in pairs]
    else:
        said = {"score": sum(level * p for level, p in enumerate(shares))}
        listed = [{"value": i, "label": option.label, "probability": p} for i, (option, p) in enumerate(pairs)]
    confidence = confidence_of(question.kind, shares)
    return {"type": question.kind, "name": question.name, **said, "confidence": confidence, "probabilities": listed}


def confidence_of(kind: Kind, probabilities: Sequence[float]) -> float:
    """Return how concentrated probabilities are, in [0, 1]: 0 where all options are equally likely, 1 for certainty.

    A choice scales the largest probability; a score compares the mean distance from its likeliest level with that of
    equal levels. Both as TypeSafe's `system-one-adapter` 0.2.1 defines them; OpenAI documents no formula.
    """
    n, total = len(probabilities), sum(probabilities)
    if not total:
        return 0.0
    shares = [probability / total for probability in probabilities]
    best = max(range(n), key=shares.__getitem__)
    if kind != "score":
        return max(0.0, (shares[best] - 1 / n) / (1 - 1 / n))
    distance = sum(share * abs(level - best) for level, share in enumerate(shares))
    equal = sum(abs(level - (n - 1) / 2) for level in range(n)) / n
    return max(0.0, 1 - distance / equal)
