"""The probe: general questions that a model is asked beside its task, to see what else it can do.

Each has right and wrong answers, and the model is right if it finds a right one the likeliest: so the smallest models
can be measured, nothing is written, and before and after a fine-tune the same thing is asked. Our own 72 questions
(arithmetic, knowledge, copying, ordering, yes or no, format) were chosen with SmolLM2-135M, most of them because it
answers them: they show what a fine-tune loses, not how good that base is. They see a large loss, not a small one, and
take 12 s on one core for a model of that size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import pydantic

from smallfirst.errors import ConfigError, DataError, Problem
from smallfirst.records import Record, fingerprint, parse_record
from smallfirst.stats.intervals import Estimate, wilson

BUILT_IN_NAME = "smallfirst's own questions"
MAX_WRONG_ANSWERS = 3
"""Wrong answers that a question without its own is given."""
FINGERPRINTED_FILES = ("*.safetensors", "config.json", "tokenizer*", "chat_template*")
"""What in a model's folder decides how it answers."""

Text = Annotated[str, pydantic.Field(min_length=1)]


class Question(Record):
    """One general question with the answers to choose from."""

    prompt: Text
    """What a user would ask."""
    answer: Annotated[tuple[Text, ...], pydantic.Field(min_length=1)]
    """The right answer, or all that count as right."""
    wrong: tuple[Text, ...] = ()
    """Wrong answers; left out in a file, up to three right answers of other questions."""
    kind: str = ""
    """What is asked for, such as `arithmetic`; figures are also given by kind."""

    @property
    def guess(self) -> float:
        """How often guessing is right, in [0, 1]."""
        return len(self.answer) / (len(self.answer) + len(self.wrong))

    @pydantic.field_validator("answer", mode="before")
    @classmethod
    def _one_answer_may_stand_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _no_answer_is_right_and_wrong(self) -> Question:
        if both := sorted({*self.answer} & {*self.wrong}):
            raise ValueError(f'"{both[0]}" is listed as right and as wrong')
        return self


class Probe(Record):
    """Questions, all with wrong answers."""

    name: str
    """Where they are from, for the reader."""
    questions: tuple[Question, ...]
    """At least one."""


class ProbeResult(Record):
    """Which questions of a probe a model answered right."""

    model: str
    """Name of the model."""
    model_fingerprint: str
    """Changes with its weights, tokenizer and chat template."""
    probe_fingerprint: str
    """Changes with the questions."""
    right: tuple[bool, ...]
    """For each question, in order."""

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers, Wilson interval."""
        return wilson(sum(self.right), len(self.right))


def read_probe(path: Path | None = None) -> Probe:
    """The questions of a file of JSON lines, or our own.

    A line is {"prompt": "…", "answer": "…" or ["…", "…"], "wrong": ["…"], "kind": "…"}; the last two may be left out.
    Raises DataError naming every bad line.
    """
    if path is None:
        text = resources.files("smallfirst.evaluation").joinpath("ability_probe.jsonl").read_text(encoding="utf-8")
        return _parsed(text, BUILT_IN_NAME, BUILT_IN_NAME)
    try:
        return _parsed(path.read_text(encoding="utf-8-sig"), str(path), path.name)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", hint="mend gate.retention_prompts in task.yaml") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not readable as UTF-8: {error}") from None


def run_probe(probe: Probe, folder: Path, *, name: str) -> ProbeResult:
    """What the causal model in `folder` makes of the questions, asked through its chat template if it has one.

    Of equally likely answers none is the likeliest, so a model that cannot tell right from wrong is not right.
    """
    from smallfirst.models.local.multiple_choice import encode_question, mean_log_probabilities
    from smallfirst.models.local.weights import load_causal

    model, tokenizer = load_causal(folder)
    choices = [encode_question(tokenizer, q.prompt, (*q.answer, *q.wrong)) for q in probe.questions]
    found = mean_log_probabilities(model, choices)
    return ProbeResult(
        model=name,
        model_fingerprint=model_fingerprint(folder),
        probe_fingerprint=probe.fingerprint(),
        right=tuple(
            max(values[: len(q.answer)]) > max(values[len(q.answer) :])
            for q, values in zip(probe.questions, found, strict=True)
        ),
    )


def model_fingerprint(folder: Path) -> str:
    """16 hex digits that change with the weights, the tokenizer and the chat template, read from the files alone."""
    paths = sorted({path for pattern in FINGERPRINTED_FILES for path in folder.glob(pattern)})
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return fingerprint(digests)


def _parsed(text: str, path: str, name: str) -> Probe:
    asked: list[tuple[int, Question]] = []
    problems = []
    for line, found in _lines(text):
        if isinstance(found, Question):
            asked.append((line, found))
        else:
            problems.append(Problem(path, line, found))
    whole = [(line, _with_wrong(question, [q for _, q in asked])) for line, question in asked]
    if not problems:
        rule = "no wrong answer here, and no other question has another answer to borrow"
        problems = [Problem(path, line, rule) for line, question in whole if not question.wrong]
    if problems or not whole:
        said = f"{len(problems)} questions that cannot be asked:" if problems else "no questions"
        example = '{"prompt": "…", "answer": "…", "wrong": ["…", "…", "…"]}'
        raise DataError(f"{path}: {said}", problems, hint=f"write one a line: {example}")
    return Probe(name=name, questions=tuple(question for _, question in whole))


def _lines(text: str) -> Iterator[tuple[int, Question | str]]:
    """Line number, and the question there or the rule it breaks."""
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError("not an object")
            yield line, parse_record(Question, values, where="")
        except ConfigError as error:
            yield line, "; ".join(part.strip() for part in str(error).split("\n")[1:])
        except ValueError as error:
            yield line, f"not readable as JSON: {error}"


def _with_wrong(question: Question, questions: list[Question]) -> Question:
    """The question, with right answers of others as wrong ones if it has none: the same ones every time."""
    if question.wrong:
        return question
    others = dict.fromkeys(q.answer[0] for q in questions if q.answer[0] not in question.answer)
    drawn = sorted(others, key=lambda answer: fingerprint([question.prompt, answer]))[:MAX_WRONG_ANSWERS]
    return question.model_copy(update={"wrong": tuple(drawn)})
