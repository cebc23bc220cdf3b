"""Open text, scored by functions that the user names (see `scorers`); the first one gives a row its score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import pydantic

from smallfirst.base.stats.intervals import Estimate, bootstrap_mean
from smallfirst.data.dataset import RowFormat
from smallfirst.tasks.scorers import SCORERS, best_score, load_scorer
from smallfirst.tasks.task import ScoredAnswer, Task


class Chat(Task):
    """A task whose answers are open text."""

    row_formats: ClassVar[tuple[RowFormat, ...]] = ("prompt", "chat", "question")

    kind: Literal["chat"] = "chat"
    scorers: tuple[str, ...] = ("token_f1",)
    """Names of scorers; the first one gives the score, all are reported."""
    pass_score: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Score of the first scorer from which an answer counts as right."""
    max_answer_tokens: int = pydantic.Field(default=256, ge=1, le=4096)

    @pydantic.model_validator(mode="after")
    def _scorers_are_known(self) -> Chat:
        if not self.scorers:
            raise ValueError("open text needs at least one scorer, such as token_f1")
        if len(set(self.scorers)) < len(self.scorers):
            raise ValueError("scorers repeat")
        for name in self.scorers:
            SCORERS.check(name, where=f"task {self.name}")  # before anything is trained or paid for
        return self

    def system_message(self) -> str:
        return self.about or "Answer the user's message."

    def parse(self, text: str) -> str | None:
        return text.strip() or None

    def score(self, golds: Sequence[str], answer: str | None, *, question: str = "") -> float:
        return best_score(load_scorer(self.scorers[0]), golds, answer, question=question)

    def measures(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        """Return the mean of every scorer by its name, bootstrap interval. Calls each scorer on each row again."""
        found = {}
        for name in self.scorers:
            scorer = load_scorer(name)
            found[name] = bootstrap_mean([best_score(scorer, row.golds, row.answer, question=row.text) for row in rows])
        return found
