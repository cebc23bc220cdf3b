"""One label out of a closed set.

A fine-tuned model gives each label one code token and is read at one position: one forward pass, always a valid
label, and probabilities over the labels that sum to 1. A general model is shown the label list and solved examples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import pydantic

from smallfirst.data.dataset import Message
from smallfirst.errors import did_you_mean
from smallfirst.records import Record
from smallfirst.tasks.task import Shot


class Classify(Record):
    """A closed-set classification task."""

    name: str
    """Short name, also the name of the served model."""
    labels: tuple[str, ...]
    """Every allowed answer, in a fixed order."""
    about: str = ""
    """One sentence on what is classified, told to general models."""
    descriptions: dict[str, str] = {}
    """What belongs under a label, told to general models; may be empty."""

    @pydantic.model_validator(mode="after")
    def _labels_are_a_set(self) -> Classify:
        if len(self.labels) < 2:
            raise ValueError("a classification needs at least two labels")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels repeat")
        for label in self.descriptions:
            if label not in self.labels:
                raise ValueError(f'description of an unknown label "{label}"{did_you_mean(label, self.labels)}')
        return self

    def prompt(self, text: str) -> str:
        """The text and a cue of one token. A chat template would be eight, trained on and read with every request."""
        return f"{text.strip()} =>"

    def instructions(self, shots: Sequence[Shot]) -> tuple[Message, ...]:
        """System message with the label list, then the solved examples as earlier turns."""
        lines = [
            self.about or "Classify the user's message.",
            "Answer with exactly one label from this list and nothing else:",
            *(
                f"- {label}: {self.descriptions[label]}" if label in self.descriptions else f"- {label}"
                for label in self.labels
            ),
        ]
        turns = [Message(role="system", content="\n".join(lines))]
        for shot in shots:
            turns.append(Message(role="user", content=shot.text))
            turns.append(Message(role="assistant", content=shot.answer))
        return tuple(turns)

    def parse(self, text: str) -> str | None:
        """The label that `text` is, or the only label it mentions, ignoring case and punctuation."""
        if (exact := text.strip()) in self.labels:
            return exact
        # Labels that differ in punctuation only ("C", "C++") are told apart by the exact text alone.
        folds = Counter(_fold(label) for label in self.labels)
        folded = {key: label for label in self.labels if (key := _fold(label)) and folds[key] == 1}
        said = _fold(text)
        if said in folded:
            return folded[said]
        mentioned = [label for key, label in folded.items() if re.search(rf"\b{re.escape(key)}\b", said)]
        longest = [m for m in mentioned if not any(m != o and _within(m, o) for o in mentioned)]
        return longest[0] if len(longest) == 1 else None

    def score(self, gold: str, answer: str | None) -> bool:
        """True if the label is the gold one."""
        return answer == gold


def _within(label: str, other: str) -> bool:
    return f" {_fold(label)} " in f" {_fold(other)} "


def _fold(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()
