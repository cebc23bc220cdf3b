"""The Task protocol: the only home of prompt text, parsing and scoring, used by training, evaluation and serving.

A task's text lives once, so a model is asked in production exactly what it was asked in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from smallfirst.data.dataset import Message


class Shot(NamedTuple):
    """A solved example shown to a general model in its prompt."""

    text: str
    answer: str


class Task(Protocol):
    """How one narrow job is asked, answered and judged."""

    @property
    def name(self) -> str:
        """Short name, also the name of the served model."""

    def prompt(self, text: str) -> str:
        """What a fine-tuned model reads: no instructions, since it was trained on nothing else."""

    def instructions(self, shots: Sequence[Shot]) -> tuple[Message, ...]:
        """What a general model must be told before the user's text: job, allowed answers, solved examples."""

    def parse(self, text: str) -> str | None:
        """The answer found in what a model wrote; None if there is none."""

    def score(self, gold: str, answer: str | None) -> bool:
        """True if the answer is right. No answer is a wrong answer."""
