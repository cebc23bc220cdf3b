"""General questions that a model is asked beside its task, to see what a fine-tune loses.

The 72 built-in ones were chosen with SmolLM2-135M, mostly because it answers them; nothing is generated, and a model of
that size takes 12 s on one core.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import pydantic

from smallfirst.errors import DataError, Problem
from smallfirst.files import sha256
from smallfirst.records import Record, fingerprint, parse_json_lines
from smallfirst.stats.intervals import Estimate, wilson

BUILT_IN_NAME = "smallfirst's own questions"
MAX_WRONG_ANSWERS = 3
"""Wrong answers borrowed from other questions for one without its own."""
FINGERPRINTED_FILES = ("*.safetensors", "config.json", "tokenizer*", "chat_template*")
"""Files in a model's folder that decide its answers."""
EXAMPLE = '{"prompt": "…", "answer": "…", "wrong": ["…", "…", "…"]}'

Text = Annotated[str, pydantic.Field(min_length=1)]


class Question(Record):
    """One general question with the answers to choose from."""

    prompt: Text
    answer: Annotated[tuple[Text, ...], pydantic.Field(min_length=1)]
    """The right answer, or all that count as right."""
    wrong: tuple[Text, ...] = ()
    """Wrong answers; left out in a file, up to three right answers of other questions."""
    kind: str = ""
    """Kind of question, such as `arithmetic`; results are also given by kind."""

    @property
    def chance(self) -> float:
        return len(self.answer) / (len(self.answer) + len(self.wrong))

    @pydantic.field_validator("answer", mode="before")
    @classmethod
    def _one_answer_may_be_given_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _no_answer_is_right_and_wrong(self) -> Question:
        if both := sorted({*self.answer} & {*self.wrong}):
            raise ValueError(f'"{both[0]}" is listed as right and as wrong')
        return self


class Probe(Record):
    """Questions, all with wrong answers."""

    name: str
    """Source of the questions, for the reader."""
    questions: tuple[Question, ...]
    """At least one."""


class ProbeResult(Record):
    """A model's results on a probe."""

    model: str
    model_fingerprint: str
    """Changes with its weights, tokenizer and chat template."""
    probe_fingerprint: str
    """Changes with the questions."""
    right: tuple[bool, ...]
    """Whether each question was answered right, in order."""

    @property
    def accuracy(self) -> Estimate:
        return wilson(sum(self.right), len(self.right))


def read_probe(path: Path | None = None) -> Probe:
    """Read questions from a file of JSON lines, or the built-in ones. Raise DataError naming every bad line."""
    if path is None:
        text = resources.files("smallfirst.evaluation").joinpath("ability_probe.jsonl").read_text(encoding="utf-8")
        return _parse(text, BUILT_IN_NAME, BUILT_IN_NAME)
    try:
        return _parse(path.read_text(encoding="utf-8-sig"), str(path), path.name)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", hint="correct gate.retention_prompts in task.yaml") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not readable as UTF-8: {error}") from None


def run_probe(probe: Probe, folder: Path, *, name: str) -> ProbeResult:
    """Ask the causal model in `folder` all questions; right means likelier than every wrong answer, ties excluded."""
    from smallfirst.models.generation.adapters import load_merged
    from smallfirst.models.local.label_trie import mean_log_probabilities

    model, tokenizer = load_merged(folder)
    likelihoods = [mean_log_probabilities(model, tokenizer, q.prompt, (*q.answer, *q.wrong)) for q in probe.questions]
    return ProbeResult(
        model=name,
        model_fingerprint=model_fingerprint(folder),
        probe_fingerprint=probe.fingerprint(),
        right=tuple(
            max(values[: len(q.answer)]) > max(values[len(q.answer) :])
            for q, values in zip(probe.questions, likelihoods, strict=True)
        ),
    )


def model_fingerprint(folder: Path) -> str:
    """Return 16 hex digits that change with the weights, the tokenizer and the chat template, from the files alone."""
    paths = sorted({path for pattern in FINGERPRINTED_FILES for path in folder.glob(pattern)})
    return fingerprint([[path.name, sha256(path)] for path in paths])


def _parse(text: str, path: str, name: str) -> Probe:
    parsed, problems = parse_json_lines(Question, text, path)
    questions = [question for _, question in parsed]
    complete = [(line, _with_wrong_answers(question, questions)) for line, question in parsed]
    if not problems:
        rule = "no wrong answer here, and no other question has another answer to borrow"
        problems = [Problem(path, line, rule) for line, question in complete if not question.wrong]
    if problems or not complete:
        summary = f"{len(problems)} questions cannot be used:" if problems else "no questions"
        raise DataError(f"{path}: {summary}", problems, hint=f"write one question per line: {EXAMPLE}")
    return Probe(name=name, questions=tuple(question for _, question in complete))


def _with_wrong_answers(question: Question, questions: list[Question]) -> Question:
    """Add right answers of other questions as wrong ones if it has none: the same ones every time."""
    if question.wrong:
        return question
    others = dict.fromkeys(q.answer[0] for q in questions if q.answer[0] not in question.answer)
    drawn = sorted(others, key=lambda answer: fingerprint([question.prompt, answer]))[:MAX_WRONG_ANSWERS]
    return question.model_copy(update={"wrong": tuple(drawn)})
