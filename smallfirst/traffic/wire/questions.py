"""A typed question about a state, and the probabilities of its options, in one form for both shapes.

A question of OpenAI's `POST /v1/decisions` and the same one of TypeSafe's `POST /v1/systemone` are equal here: its
words with its options are the constant part of a prompt, the state is the case, so each distinct question is a task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from smallfirst.base.records import fingerprint
from smallfirst.models.pricing.tokens import TokenUsage, read_usage

Kind = Literal["predicate", "choice", "score"]
TRUE, FALSE = "true", "false"
DEFAULT_INSTRUCTIONS: dict[Kind, str] = {
    "predicate": "The text fits the description of true.",
    "choice": "Choose the option that fits the text best.",
    "score": "Rate the text on the levels.",
}
"""Where System One leaves the instructions out."""


class Option(NamedTuple):
    """One possible answer of a question."""

    label: str
    """Its name as a label of the task: unique among the options, a boolean as `true` or `false`."""
    description: str = ""
    value: str | bool = ""
    """The value of a choice as OpenAI types it; elsewhere the label."""


class Question(NamedTuple):
    """What is asked about a state."""

    kind: Kind
    """predicate (a noul in System One), choice or score."""
    instructions: str
    options: tuple[Option, ...]
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
        return not self.has_media and all(self.labels) and len(set(self.labels)) == len(self.labels) > 1

    @property
    def text(self) -> str:
        """Return the question in words; equal questions, equal text, whatever their names and their shape."""
        listed = "\n".join(": ".join(filter(None, option[:2])) for option in self.options)
        asked = self.instructions or DEFAULT_INSTRUCTIONS[self.kind]
        if self.kind == "choice":
            return f"{asked}\n{listed}\nAnswer with one of these."
        if self.kind == "score":
            return f"{asked}\n{listed}\nAnswer with one of these, listed from the lowest to the highest."
        meaning = f"{listed}\n" if any(option.description for option in self.options) else ""
        return f"{asked}\n{meaning}Is this true of the text? Answer true or false."

    @property
    def id(self) -> str:
        """16 hex digits: equal questions, equal ids."""
        return fingerprint(self.text)


class DecisionRequest(NamedTuple):
    """Questions about one state."""

    model: str
    state: str | dict[str, Any] | list[Any]
    questions: tuple[Question, ...]
    raw: dict[str, Any]
    """The body as it came."""
    has_media: bool = False
    """True if the state holds images, which its text leaves out."""

    @property
    def text(self) -> str:
        """Return the state as text, JSON where it is no text."""
        return as_text(self.state)


class Verdict(NamedTuple):
    """The answer to one question."""

    probabilities: tuple[float, ...] = ()
    """One per option, in their order; empty for a refusal."""
    confidence: float | None = None
    """As an upstream gave it; computed where it gave none."""
    raw: dict[str, Any] | None = None
    """The answer as the upstream wrote it, which stays as it is where the application speaks the same shape."""

    @property
    def refused(self) -> bool:
        return not self.probabilities

    @property
    def best(self) -> int:
        """Index of the likeliest option, the first of equals."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def expected(self) -> float:
        """Mean level in [0, levels - 1]."""
        return sum(level * probability for level, probability in enumerate(self.probabilities))


class Usage(NamedTuple):
    """Tokens that answers took."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @classmethod
    def of(cls, response: Mapping[str, Any]) -> Usage:
        """Return the tokens that a response bills; what it leaves out counts as none."""
        tokens = read_usage(response).tokens or TokenUsage()
        return cls(tokens.prompt_tokens, tokens.completion_tokens, tokens.cached_tokens, tokens.reasoning_tokens)


class Shape(Protocol):
    """A shape in which applications ask typed questions."""

    ROUTE: str

    def read_request(self, body: dict[str, Any]) -> DecisionRequest:
        """Return a request's questions. Raise pydantic.ValidationError naming every broken rule."""

    def with_questions(self, request: DecisionRequest, questions: Sequence[Question], model: str) -> dict[str, Any]:
        """Return a request's body with these of its questions alone."""

    def read_label(self, answer: dict[str, Any]) -> str:
        """Return the likeliest label of an answer. Raise an error if it has another form."""

    def read_response(self, response: dict[str, Any], questions: Sequence[Question]) -> list[Verdict]:
        """Return the verdict on each question. Raise ValueError where an answer is missing or has another form."""

    def write_response(
        self, model: str, questions: Sequence[Question], verdicts: Sequence[Verdict], usage: Usage
    ) -> dict[str, Any]:
        """Return the response's body."""


def confidence_of(kind: Kind, probabilities: Sequence[float]) -> float:
    """Return how concentrated probabilities are, in [0, 1]: 0 where all options are equally likely, 1 for certainty.

    A choice scales the largest probability; a score compares the mean distance from its likeliest level with that of
    equal levels. Both as TypeSafe's `system-one-adapter` 0.2.1 defines them; OpenAI documents no formula.
    """
    n, total = len(probabilities), sum(probabilities)
    if n == 1 or not total:
        return float(n == 1)
    shares = [probability / total for probability in probabilities]
    best = max(range(n), key=shares.__getitem__)
    if kind != "score":
        return max(0.0, (shares[best] - 1 / n) / (1 - 1 / n))
    distance = sum(share * abs(level - best) for level, share in enumerate(shares))
    equal = sum(abs(level - (n - 1) / 2) for level in range(n)) / n
    return max(0.0, 1 - distance / equal)


def as_text(content: Any) -> str:
    """Return text as it is, nothing as an empty string, and any other JSON value as JSON."""
    if content is None:
        return ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def as_number(value: Any) -> float | None:
    """Return a JSON number; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def label_of(value: str | bool) -> str:
    """Return the label of a choice's value: booleans are `true` and `false`, texts that read so stand in quotes."""
    if isinstance(value, bool):
        return TRUE if value else FALSE
    return json.dumps(value) if value in (TRUE, FALSE) else value


def predicate_options(true: str = "", false: str = "") -> tuple[Option, ...]:
    """Return the two options of a predicate with what counts as each."""
    return (Option(TRUE, true, TRUE), Option(FALSE, false, FALSE))
