"""A template: constant text around slots in each message of a prompt; the prompts that follow it, with their values."""

from __future__ import annotations

from smallfirst.data.importers.constant_text import values_between
from smallfirst.records import Record, fingerprint
from smallfirst.traffic.messages import Prompt


class TextPattern(Record):
    """Constant pieces of one message, with a slot between each two of them."""

    pieces: tuple[str, ...]
    """At least one; the message is pieces[0], slot, pieces[1], slot, …, pieces[-1]. The outer ones may be empty."""

    @property
    def n_slots(self) -> int:
        return len(self.pieces) - 1

    def values(self, text: str) -> tuple[str, ...] | None:
        """Return what stands in the slots, of each the shortest that fits; None if the text does not follow."""
        return values_between(self.pieces, text)


class TurnPattern(Record):
    """One message of a template."""

    role: str
    """system, user or assistant; an assistant's message is a solved example."""
    text: TextPattern


class Template(Record):
    """What all prompts of one kind share."""

    turns: tuple[TurnPattern, ...]
    """The messages, oldest first."""
    tools: str = ""
    """As in `Prompt.tools`."""
    response_format: str = ""
    """As in `Prompt.response_format`."""

    @property
    def id(self) -> str:
        """16 hex digits: equal templates, equal ids; another wording is another template."""
        return fingerprint(self.model_dump(mode="json"))

    @property
    def n_slots(self) -> int:
        return sum(turn.text.n_slots for turn in self.turns)

    def values(self, prompt: Prompt) -> tuple[str, ...] | None:
        """Return what stands in the slots of all messages, in order; None if the prompt does not follow it."""
        if prompt.has_media or prompt.tools != self.tools or prompt.response_format != self.response_format:
            return None
        if len(prompt.turns) != len(self.turns):
            return None
        values: tuple[str, ...] = ()
        for pattern, turn in zip(self.turns, prompt.turns, strict=True):
            found = pattern.text.values(turn.text) if pattern.role == turn.role else None
            if found is None:
                return None
            values += found
        return values
