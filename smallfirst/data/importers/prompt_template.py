"""The constant text around what varies in prompts that a program wrote, so that the case itself can be cut out."""

from __future__ import annotations

from collections.abc import Sequence

from smallfirst.data.importers.constant_text import constant_pieces, values_between

MIN_CONSTANT_CHARACTERS = 20
"""Fewest characters that prompts must share for these to be a template."""
MIN_SHARE = 0.8
"""Least share of prompts that must follow a template."""
_SAMPLE = 120


class PromptTemplate:
    """Constant pieces of text in their order, with something that varies between them."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = tuple(pieces)

    def values(self, prompt: str) -> tuple[str, ...] | None:
        """Return what stands in the gaps of the template; None if the prompt does not follow it."""
        found = values_between(self.pieces, prompt)
        return tuple(value.strip() for value in found) if found is not None else None

    @property
    def in_words(self) -> str:
        """The template on one line, with … for what varies."""
        return " … ".join(" ".join(piece.split()) for piece in self.pieces if piece.strip())


def find_template(prompts: Sequence[str]) -> PromptTemplate | None:
    """Return the template that most prompts follow; None if they share no constant text."""
    different = list(dict.fromkeys(prompts))
    if len(different) < 3:
        return None
    step = max(1, len(different) // _SAMPLE)
    for share in (1.0, MIN_SHARE):  # the second is for prompts of which a few follow no template
        template = PromptTemplate(constant_pieces(different[::step][:_SAMPLE], share))
        n_followed = sum(template.values(prompt) is not None for prompt in prompts)
        n_constant = sum(len(piece.strip()) for piece in template.pieces)
        if n_constant >= MIN_CONSTANT_CHARACTERS and n_followed >= MIN_SHARE * len(prompts):
            return template
    return None
