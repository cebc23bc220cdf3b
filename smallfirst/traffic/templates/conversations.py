"""Conversations: requests that continue earlier ones, and system prompts under which people converse."""

from __future__ import annotations

from collections import Counter

from smallfirst.traffic.messages import Prompt, Turn
from smallfirst.traffic.templates.template import Template

_CONTINUED, _LEAST = 0.02, 2
"""Share and number of a system prompt's requests that continue an earlier one where people converse under it."""


class Conversations:
    """Requests seen, as hashes."""

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._by_system: Counter[int] = Counter()
        self._continued: Counter[int] = Counter()

    def note(self, prompt: Prompt) -> bool:
        """Take a request; return True if it is an earlier one with its answer and another question after it."""
        turns = prompt.turns
        continues = len(turns) > 2 and hash(turns[:-2]) in self._asked
        if turns[0].role == "system":
            system = hash(turns[0])
            self._by_system[system] += 1
            self._continued[system] += continues
        self._asked.add(hash(turns))
        return continues

    def starts_them(self, template: Template) -> bool:
        """True for a constant system prompt with whatever the user says, where requests continue earlier ones."""
        first, last = template.turns[0], template.turns[-1]
        if first.role != "system" or first.text.n_slots or any(last.text.pieces):
            return False
        system = hash(Turn("system", first.text.pieces[0]))
        return self._continued[system] >= max(_LEAST, _CONTINUED * self._by_system[system])
