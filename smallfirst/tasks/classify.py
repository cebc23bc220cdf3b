"""One label out of a closed set, or several.

A fine-tuned model gives each label one code token and is read at one position. Sets of several labels are written as a
JSON list under a schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from smallfirst.base.errors import DataError, did_you_mean
from smallfirst.base.stats.intervals import Estimate
from smallfirst.data.dataset import Dataset, RowFormat
from smallfirst.data.row_formats import to_json
from smallfirst.tasks.labels import (
    counts_by_label,
    jaccard,
    label_metrics,
    label_set_counts,
    label_set_metrics,
    parse_label,
)
from smallfirst.tasks.task import PartCounts, ScoredAnswer, Task

MIN_ANSWER_TOKENS, MAX_ANSWER_TOKENS = 32, 1024
"""Between these lies the most tokens that a written answer may have."""


class Classify(Task):
    """A closed-set classification task."""

    part: ClassVar[Literal["label"]] = "label"
    pass_score: ClassVar[float] = 1.0

    kind: Literal["classify"] = "classify"
    labels: tuple[str, ...]
    """Every allowed answer in a fixed order; left out of a task file: those of its rows."""
    descriptions: dict[str, str] = {}
    """What belongs under a label, shown to general models; may be empty."""
    other: str | None = None
    """The label for none of the others (out of scope); adds metrics of how well such rows are recognized."""
    multiple: bool = False
    """True if a text may have several labels or none; an answer is then a JSON list in label order: `["a", "b"]`."""

    @pydantic.model_validator(mode="after")
    def _settings_fit_together(self) -> Classify:
        problems = ["a classification needs at least two labels"] * (len(self.labels) < 2)
        problems += ["labels repeat"] * (len(set(self.labels)) < len(self.labels))
        named = [("description of an unknown label", label) for label in self.descriptions]
        named += [] if self.other is None else [("other is an unknown label", self.other)]
        problems += [
            f'{what} "{label}"{did_you_mean(label, self.labels)}' for what, label in named if label not in self.labels
        ]
        if self.multiple and self.other is not None:
            problems.append("other cannot go with multiple: there an empty list says that no label fits")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def row_formats(self) -> tuple[RowFormat, ...]:
        return ("labels",) if self.multiple else ("label",)

    @classmethod
    def expand_settings(cls, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Split `labels` into labels and descriptions if it maps one to the other."""
        described = settings.get("labels")
        if isinstance(described, list):  # of whole numbers: the rows' are read as text too
            return settings | {"labels": [str(x) if type(x) is int else x for x in described]}
        if not isinstance(described, dict):
            return settings
        # YAML reads a bare yes or no as true or false: left as it is, to be refused, not renamed "True".
        labels = [label if isinstance(label, bool) else str(label) for label in described]
        descriptions = {str(label): str(text) for label, text in described.items() if text}
        return settings | {"labels": labels, "descriptions": descriptions}

    @classmethod
    def complete_settings(cls, settings: dict[str, Any], train: Dataset, others: Sequence[Dataset]) -> dict[str, Any]:
        """Add the labels of all rows if the file names none: a rare label may have all its rows in one split."""
        if settings.get("labels"):
            return settings
        found = {answer for part in (train, *others) for answer in part.labels()}
        if train.examples and train.examples[0].shape == "labels":
            found = {label for answer in found for label in json.loads(answer)}
        if len(found) == 1:
            raise DataError(
                f'all rows have one label, "{next(iter(found))}"; a classification needs at least two',
                hint="label rows of the others, or name every label under labels: in task.yaml",
            )
        return settings | {"labels": sorted(found)}

    @classmethod
    def row_labels(cls, settings: Mapping[str, Any], train: Dataset | None = None) -> tuple[str, ...] | None:
        if settings.get("labels"):
            return tuple(settings["labels"])
        return None if train is None or settings.get("multiple") else train.labels()

    def target(self, answer: str) -> str:
        return (self.parse(answer) or answer) if self.multiple else super().target(answer)

    def system_message(self) -> str:
        lines = [self.about or "Classify the user's message."]
        if self.multiple:
            lines.append("Answer with a JSON list of all labels from this list that fit, and nothing else:")
        else:
            lines.append("Answer with exactly one label from this list and nothing else:")
        for label in self.labels:
            lines.append(f"- {label}: {self.descriptions[label]}" if label in self.descriptions else f"- {label}")
        if self.multiple:
            lines.append("Answer [] if none fits.")
        if self.other is not None:
            lines.append(f"Answer {self.other} if none of the others fits.")
        return "\n".join(lines)

    @property
    def closed(self) -> tuple[str, ...]:
        return () if self.multiple else self.labels

    @property
    def answer_labels(self) -> tuple[str, ...]:
        return self.labels

    @property
    def max_answer_tokens(self) -> int:
        written = [to_json(list(self.labels))] if self.multiple else self.labels
        return min(MAX_ANSWER_TOKENS, max(MIN_ANSWER_TOKENS, *(len(text.encode()) + 2 for text in written)))

    def answer_schema(self) -> Mapping[str, Any] | None:
        """Return a list of labels where there may be several; `parse` takes a repeated one once."""
        if not self.multiple:
            return None
        items = {"enum": list(self.labels)}
        return {"type": "array", "items": items, "maxItems": len(self.labels)}

    def parse(self, text: str) -> str | None:
        """Return the label that `text` is or alone mentions; of several a JSON list or those that commas separate."""
        if not self.multiple:
            return text if text in self.labels else parse_label(self.labels, text)
        found = [parse_label(self.labels, piece) for piece in self._pieces(text)]
        if None in found or not (found or "[" in text):
            return None
        return to_json([label for label in self.labels if label in found])

    def score(self, golds: Sequence[str], answer: str | None) -> float:
        """Return 1 if the label is a gold one, else 0; of several the best Jaccard index with a gold set."""
        if not self.multiple:
            return float(answer in golds)
        said = self._as_set(answer)
        if said is None:
            return 0.0
        return max((jaccard(gold, said) for text in golds if (gold := self._as_set(text)) is not None), default=0.0)

    def measures(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        if self.multiple:
            return label_set_metrics(self.labels, *self._sets(rows))
        return label_metrics(self.labels, rows, other=self.other)

    def parts(self, rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
        return label_set_counts(self.labels, *self._sets(rows)) if self.multiple else counts_by_label(self.labels, rows)

    def _pieces(self, text: str) -> list[str]:
        """Return the texts of a JSON list anywhere in `text`, or what commas and line ends separate."""
        bracketed = text[text.find("[") : text.rfind("]") + 1]
        try:
            listed = json.loads(bracketed)
        except (ValueError, RecursionError):
            listed = None
        if isinstance(listed, list):
            return [piece if isinstance(piece, str) else "" for piece in listed]
        if text.strip() in self.labels:  # it may have a comma of its own
            return [text]
        return [piece for piece in re.split(r"[,;\n]", text) if piece.strip()]

    def _as_set(self, answer: str | None) -> tuple[str, ...] | None:
        """Return the labels of a canonical answer; None if it is not one."""
        parsed = None if answer is None else self.parse(answer)
        return None if parsed is None else tuple(json.loads(parsed))

    def _sets(self, rows: Sequence[ScoredAnswer]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...] | None]]:
        """Return gold and answered labels of each row; of several gold sets the one nearest to the answer."""
        golds, answers = [], []
        for row in rows:
            said = self._as_set(row.answer)
            right = [gold for text in row.golds if (gold := self._as_set(text)) is not None]
            if right:
                golds.append(max(right, key=lambda gold: jaccard(gold, said or ())))
                answers.append(said)
        return golds, answers
