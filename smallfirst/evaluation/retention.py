"""Retention: how much of its general ability a model keeps when it is fine-tuned, by general questions.

Mean score after over before on the same questions, corrected for guessing; bootstrap over questions (Efron 1979). The
72 built-in ones were chosen with SmolLM2-135M, mostly because it answers them; nothing is generated, and a model of
that size takes 12 s on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from smallfirst.errors import ConfigError, DataError, Problem
from smallfirst.files import sha256
from smallfirst.records import Record, fingerprint, parse_json_lines
from smallfirst.stats.intervals import Estimate, bootstrap, paired_difference, wilson

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


class RetentionByKind(Record):
    """Right answers to general prompts of one kind."""

    kind: str
    n: int
    n_before: int
    n_after: int


class Retention(Record):
    """General ability before and after training."""

    kept: Estimate | None
    """Mean score after over mean score before, on the same prompts; interval at 95 %. Above 1 if it grew. None if the
    base model was not shown to be better than guessing, so that there is nothing to keep."""
    before: float
    """Mean score of the base model; 0 is guessing, 1 all right."""
    after: float
    prompts: str
    right_before: Estimate
    """Share of right answers of the base model, guesses included, Wilson interval."""
    right_after: Estimate
    """Share of right answers of the trained model, guesses included, Wilson interval."""
    difference: Estimate
    """Share of right answers after minus before, paired on the same prompts."""
    parts: tuple[RetentionByKind, ...] = ()
    """Right answers by kind of prompt; empty if there is one kind only."""


def retention_from_probes(probe: Probe, before: ProbeResult, after: ProbeResult) -> Retention:
    """Return the Retention from a probe's results before and after training, corrected for guessing (Frary 1988).

    A right answer scores 1, a wrong one -g / (1 - g), with g the accuracy of guessing: so guessing scores 0 on average,
    however many answers there are. Raises ConfigError if a result is not of this probe.
    """
    if {before.probe_fingerprint, after.probe_fingerprint} != {probe.fingerprint()}:
        raise ConfigError("retention needs the same prompts before and after", hint="smallfirst evaluate task.yaml")
    chances = [question.chance for question in probe.questions]
    old, new = _corrected(before, chances), _corrected(after, chances)
    better_than_guessing = before.accuracy.low > float(np.mean(chances))
    return Retention(
        kept=_kept_share(old, new) if better_than_guessing else None,
        before=float(old.mean()),
        after=float(new.mean()),
        prompts=probe.name,
        right_before=before.accuracy,
        right_after=after.accuracy,
        difference=paired_difference(after.right, before.right),
        parts=_by_kind(probe, before, after),
    )


def _corrected(result: ProbeResult, chances: Sequence[float]) -> np.ndarray:
    return np.array([1.0 if right else -g / (1 - g) for right, g in zip(result.right, chances, strict=True)])


def _kept_share(before: np.ndarray, after: np.ndarray) -> Estimate:
    def ratio(rows: np.ndarray) -> float:
        total = float(before[rows].sum())
        return float(after[rows].sum()) / total if total > 0 else 0.0  # a draw of failures alone shows nothing kept

    return bootstrap(ratio, before.size)


def _by_kind(probe: Probe, before: ProbeResult, after: ProbeResult) -> tuple[RetentionByKind, ...]:
    found = []
    for kind in dict.fromkeys(question.kind for question in probe.questions):
        at = [i for i, question in enumerate(probe.questions) if question.kind == kind]
        n_before, n_after = (sum(result.right[i] for i in at) for result in (before, after))
        found.append(RetentionByKind(kind=kind, n=len(at), n_before=n_before, n_after=n_after))
    return tuple(found) if len(found) > 1 else ()
