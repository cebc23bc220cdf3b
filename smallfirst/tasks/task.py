"""The Task protocol: the only home of prompt text, parsing and scoring, used by training, evaluation and serving.

A task's text lives once, so a model is asked in production exactly what it was asked in training. Answers are text
everywhere (a label, canonical JSON, a sentence), so that rows, recordings and the ledger need one shape only; the price
is that a task parses its own canonical answers again when it scores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from smallfirst.data.dataset import Message
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, wilson


class Shot(NamedTuple):
    """A solved example shown to a general model in its prompt."""

    text: str
    answer: str


class ScoredAnswer(NamedTuple):
    """One row's outcome, as the figures of a task are drawn from it."""

    golds: tuple[str, ...]
    """Answers that count as right, the first one being the row's own."""
    answer: str | None
    """The parsed answer; None if there was none."""
    score: float
    """What the task gave it, in [0, 1]."""
    text: str = ""
    """What was asked; empty where it is not known."""


class PartCounts(Record):
    """One label or one field: how often it was there, said and right."""

    name: str
    """Label, or the field's path."""
    n_gold: int
    """Rows (for a list: items) in which it was there to be found."""
    n_said: int
    """How often an answer said it."""
    n_right: int
    """How often rightly."""
    n_missing: int = 0
    """There, but the answer says nothing (fields only)."""
    n_invented: int = 0
    """Not there, but the answer says something (fields only)."""

    @property
    def recall(self) -> Estimate:
        """Share of what was there that was found."""
        return wilson(self.n_right, self.n_gold)

    @property
    def precision(self) -> Estimate:
        """Share of what was said that is right."""
        return wilson(self.n_right, self.n_said)

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 if it was neither there nor said."""
        return 2 * self.n_right / max(1, self.n_gold + self.n_said)


class Task(Protocol):
    """How one narrow job is asked, answered and judged."""

    @property
    def name(self) -> str:
        """Short name, also the name of the served model."""

    @property
    def closed(self) -> tuple[str, ...]:
        """Every allowed answer, in a fixed order, if the answers are a closed set; else empty."""

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens a written answer may have."""

    @property
    def right_from(self) -> float:
        """Score in (0, 1] from which an answer counts as right."""

    def prompt(self, text: str) -> str:
        """What a fine-tuned model reads: no instructions, since it was trained on nothing else."""

    def target(self, answer: str) -> str:
        """What a fine-tuned model learns to write after the prompt, end of turn not included."""

    def instructions(self, shots: Sequence[Shot]) -> tuple[Message, ...]:
        """What a general model must be told before the user's text: job, allowed answers, solved examples."""

    def answer_schema(self) -> Mapping[str, Any] | None:
        """JSON schema that every written answer must follow; None where answers are no JSON."""

    def parse(self, text: str) -> str | None:
        """The answer found in what a model wrote, in its canonical form; None if there is none."""

    def score(self, golds: Sequence[str], answer: str | None) -> float:
        """How right a parsed answer is, in [0, 1]: the best over the gold answers. No answer scores 0."""

    def measures(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        """The task's own figures by name (such as `macro_f1`), each with a 95 % interval, most telling first."""

    def parts(self, rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
        """Counts by label or by field; empty if the task has no parts."""
