"""A short answer to a question, with or without a text to find it in; open answers are compared as SQuAD does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal

import pydantic

from smallfirst.base.errors import did_you_mean
from smallfirst.base.stats.intervals import Estimate, bootstrap_mean, wilson
from smallfirst.data.dataset import RowFormat
from smallfirst.tasks.labels import counts_by_label, label_metrics, parse_label
from smallfirst.tasks.scorers import best_score, exact, normalize_answer, token_f1
from smallfirst.tasks.task import PartCounts, ScoredAnswer, Task


class Answer(Task):
    """Questions with short answers. A row's text is its context, if any, a blank line, and the question."""

    row_formats: ClassVar[tuple[RowFormat, ...]] = ("question", "prompt")
    request_noun: ClassVar[str] = "questions"

    kind: Literal["answer"] = "answer"
    choices: tuple[str, ...] = ()
    """Every allowed answer, such as yes, no and maybe; empty for open answers."""
    not_answerable: str = ""
    """The answer if the text holds none; empty if every question has one. With choices, one of them."""
    pass_score: float = pydantic.Field(default=1.0, gt=0, le=1)
    """Token F1 from which an open answer counts as right."""
    max_answer_tokens: int = pydantic.Field(default=64, ge=1, le=4096)

    @pydantic.model_validator(mode="after")
    def _choices_are_a_set(self) -> Answer:
        if len(self.choices) == 1:
            raise ValueError("a question with choices needs at least two")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("choices repeat")
        if self.choices and self.not_answerable and self.not_answerable not in self.choices:
            near = did_you_mean(self.not_answerable, self.choices)
            raise ValueError(f'not_answerable "{self.not_answerable}" must be one of the choices{near}')
        return self

    @property
    def closed(self) -> tuple[str, ...]:
        return self.choices

    @property
    def part(self) -> Literal["label", ""]:
        return "label" if self.choices else ""

    def system_message(self) -> str:
        lines = [self.about or "Answer the user's question."]
        if self.choices:
            lines += ["Answer with exactly one of these and nothing else:", *(f"- {c}" for c in self.choices)]
        else:
            lines.append("Answer with the shortest exact answer and nothing else: no sentence, no explanation.")
        if self.not_answerable:
            lines.append(f"If there is no answer to be found, answer: {self.not_answerable}")
        return "\n".join(lines)

    def parse(self, text: str) -> str | None:
        """Return what precedes the first blank line; of choices the one that it is, or the only one it mentions."""
        said = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].strip()
        if self.choices:
            return parse_label(self.choices, said)
        return self.not_answerable if self.abstains(said) else said or None

    def score(self, golds: Sequence[str], answer: str | None) -> float:
        """Return the token F1 against the best gold answer; a choice or "no answer" is right or wrong."""
        if self.choices:
            return float(answer in golds)
        if answer is not None and self.abstains(answer):
            return float(self._has_none(golds))
        return best_score(token_f1, [gold for gold in self._read(golds) if not self.abstains(gold)], answer)

    def measures(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        """Return `token_f1` and `exact_match` of open answers, the metrics of a classification for choices.

        Where a question may have no answer, also `abstain_precision` and `abstain_recall` (of the answers that say so,
        and of the rows that have none) and for open answers `answerable_f1` (token F1 on rows that have one).
        """
        abstaining = self._abstaining(rows) if self.not_answerable else {}
        if self.choices:
            return {**label_metrics(self.choices, rows), **abstaining}
        same = sum(best_score(exact, self._read(row.golds), row.answer) == 1.0 for row in rows)
        found = {"token_f1": bootstrap_mean([row.score for row in rows]), "exact_match": wilson(same, len(rows))}
        if self.not_answerable:
            found["answerable_f1"] = bootstrap_mean([row.score for row in rows if not self._has_none(row.golds)])
        return {**found, **abstaining}

    def parts(self, rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
        return counts_by_label(self.choices, rows) if self.choices else ()

    def abstains(self, text: str) -> bool:
        """Return True if `text` says that the question has no answer."""
        return bool(self.not_answerable) and normalize_answer(text) == normalize_answer(self.not_answerable)

    def _has_none(self, golds: Sequence[str]) -> bool:
        return any(self.abstains(gold) for gold in golds)

    def _read(self, golds: Sequence[str]) -> list[str]:
        """Return gold answers as `parse` reads them: what follows a blank line cannot be expected of an answer."""
        return [self.parse(gold) or gold for gold in golds]

    def _abstaining(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        said = [row.answer is not None and self.abstains(row.answer) for row in rows]
        there = [self._has_none(row.golds) for row in rows]
        both = sum(s and t for s, t in zip(said, there, strict=True))
        return {"abstain_precision": wilson(both, sum(said)), "abstain_recall": wilson(both, sum(there))}


def split_context(text: str) -> tuple[str, str]:
    """Return the context, empty if there is none, and the question: what is before and after the last blank line."""
    context, _, question = text.strip().replace("\r\n", "\n").rpartition("\n\n")
    return context.strip(), question.strip()
