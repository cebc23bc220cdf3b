"""TypeSafe's `POST /v1/systemone`: a state and named questions; answers under the same names.

Source: the schemas of typesafe-sdk 0.7.5, made from TypeSafe's OpenAPI document; 255 options and ten levels as its
clients check them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from smallfirst.traffic.wire.questions import (
    FALSE,
    TRUE,
    DecisionRequest,
    Kind,
    Option,
    Question,
    Usage,
    Verdict,
    as_number,
    as_text,
    confidence_of,
    predicate_options,
)

ROUTE = "/v1/systemone"
MAX_OPTIONS, MAX_LEVELS = 255, 10
_Content = str | dict[str, Any] | list[Any]
_KINDS: dict[str, Kind] = {"noul": "predicate", "choice": "choice", "score": "score"}
_TYPES = {kind: name for name, kind in _KINDS.items()}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _Outcomes(_Strict):
    true: _Content | None = None
    false: _Content | None = None


class _Noul(_Strict):
    type: Literal["noul"]
    instructions: _Content | None = None
    criteria: _Outcomes | None = None

    @pydantic.model_validator(mode="after")
    def _asks_something(self) -> _Noul:
        described = self.criteria and (self.criteria.true is not None or self.criteria.false is not None)
        if self.instructions is None and not described:
            raise ValueError("instructions or criteria are required")
        return self


class _Choice(_Strict):
    type: Literal["choice"]
    instructions: _Content | None = None
    criteria: Annotated[dict[str, _Content | None], Field(min_length=1, max_length=MAX_OPTIONS)]


class _Score(_Strict):
    type: Literal["score"]
    instructions: _Content | None = None
    criteria: Annotated[list[_Content], Field(min_length=1, max_length=MAX_LEVELS)]


class _Box(_Strict):
    type: Literal["box"]
    instructions: _Content | None = None


_Question = Annotated[_Noul | _Choice | _Score | _Box, Field(discriminator="type")]


class _Body(pydantic.BaseModel):
    """Other keys are extensions of some server, and pass."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)
    model: str
    state: _Content
    questions: Annotated[dict[str, _Question], Field(min_length=1)]
    assets: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    images: list[str] | None = None


def read_request(body: dict[str, Any]) -> DecisionRequest:
    """Return a request's questions. Raise pydantic.ValidationError naming every broken rule.

    A request with images, or with a question that asks for a box in one, has media: it is answered by its upstream.
    """
    parsed = _Body.model_validate(body)
    asked = {name: one for name, one in parsed.questions.items() if not isinstance(one, _Box)}
    questions = tuple(_question(name, one, body["questions"][name]) for name, one in asked.items())
    has_media = bool(parsed.assets or parsed.images) or len(asked) < len(parsed.questions)
    return DecisionRequest(parsed.model, parsed.state, questions, body, has_media)


def with_questions(request: DecisionRequest, questions: Sequence[Question], model: str) -> dict[str, Any]:
    """Return a body of this shape with these of its questions alone."""
    return {**request.raw, "model": model, "questions": {question.name: question.raw for question in questions}}


def read_label(answer: dict[str, Any]) -> str:
    """Return the likeliest label of an answer. Raise KeyError, TypeError or ValueError if it has another form."""
    if answer["type"] == "noul":
        return TRUE if float(answer["noul"]) >= 0.5 else FALSE
    if answer["type"] == "choice":
        return str(answer["choice"])
    probabilities = answer["probabilities"]
    return _level(answer["legend"][max(probabilities, key=lambda level: float(probabilities[level]))]).label


def read_response(response: dict[str, Any], questions: Sequence[Question]) -> list[Verdict]:
    """Return the verdict on each question. Raise ValueError where an answer is missing or has another form."""
    answers = response.get("answers")
    if not isinstance(answers, dict) or len(answers) != len(questions):
        raise ValueError(f"{len(questions)} answers expected")
    return [_verdict(answers.get(question.name), question) for question in questions]


def write_response(
    model: str, questions: Sequence[Question], verdicts: Sequence[Verdict], usage: Usage
) -> dict[str, Any]:
    """Return the response's body. A refusal, for which the shape has no answer, is `{"type": "refusal"}`.

    TypeSafe's client leaves out answers of types that it does not know.
    """
    answers = {q.name: _answer(q, verdict) for q, verdict in zip(questions, verdicts, strict=True)}
    tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    return {"model": model, "answers": answers, "usage": tokens}


def _question(name: str, asked: Any, raw: dict[str, Any]) -> Question:
    if isinstance(asked, _Noul):
        outcomes = asked.criteria or _Outcomes()
        options = predicate_options(as_text(outcomes.true), as_text(outcomes.false))
    elif isinstance(asked, _Choice):
        options = tuple(Option(key, as_text(value), key) for key, value in asked.criteria.items())
    else:
        options = tuple(map(_level, asked.criteria))
    return Question(_KINDS[asked.type], as_text(asked.instructions), options, name, raw)


def _level(content: Any) -> Option:
    """Return a level; an object of OpenAI's form, as clients of both shapes send it, keeps label and description."""
    if isinstance(content, dict) and isinstance(content.get("label"), str):
        description = as_text(content.get("description"))
        if content.keys() <= {"label", "description"}:
            return Option(content["label"], description, content["label"])
    return Option(as_text(content), value=as_text(content))


def _verdict(answer: Any, question: Question) -> Verdict:
    kind = answer.get("type") if isinstance(answer, dict) else None
    if kind == "refusal":
        return Verdict(raw=answer)
    if _KINDS.get(str(kind)) != question.kind:
        raise ValueError(f"an answer to a {_TYPES[question.kind]} expected, not {kind!r}")
    try:
        if question.kind == "predicate":
            true = float(answer["noul"])
            return Verdict((true, 1 - true), raw=answer)
        given = answer["probabilities"]
        keys = [str(i) for i in range(len(question.options))] if question.kind == "score" else question.labels
        probabilities = tuple(float(given.get(key, 0.0)) for key in keys)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"a {kind} without its probabilities") from None
    confidence = answer.get("confidence")
    return Verdict(probabilities, as_number(confidence), answer)


def _answer(question: Question, verdict: Verdict) -> dict[str, Any]:
    if verdict.refused:
        return {"type": "refusal"}
    if verdict.raw is not None:
        return verdict.raw
    if question.kind == "predicate":
        return {"type": "noul", "noul": verdict.probabilities[question.labels.index(TRUE)]}
    confidence = verdict.confidence
    if confidence is None:
        confidence = confidence_of(question.kind, verdict.probabilities)
    if question.kind == "choice":
        shares = dict(zip(question.labels, verdict.probabilities, strict=True))
        chosen = question.labels[verdict.best]
        return {"type": "choice", "choice": chosen, "confidence": confidence, "probabilities": shares}
    return {
        "type": "score",
        "score": verdict.expected,
        "confidence": confidence,
        "legend": {str(i): content for i, content in enumerate(question.raw["criteria"])},
        "probabilities": {str(i): p for i, p in enumerate(verdict.probabilities)},
    }
