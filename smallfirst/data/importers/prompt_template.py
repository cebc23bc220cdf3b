"""The constant text around what varies in prompts that a program wrote, so that the case itself can be cut out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

MIN_CONSTANT_CHARACTERS = 20
"""Fewest characters that prompts must share for these to be a template."""
MIN_SHARE = 0.8
"""Least share of prompts that must follow a template."""
_SAMPLE = 40
_MIN_ANCHOR = 8
_MARK = re.compile(r'[:\n"`<>\[\](){}#=|]')
_LAST_MARK = re.compile(r'.*[:\n"`>\])}#=|]\s*', re.DOTALL)
_FIRST_MARK = re.compile(r'[\n"`<\[{(#=|].*', re.DOTALL)
_PIECES = re.compile(r"\w+|\s+|[^\w\s]")


class PromptTemplate:
    """Constant pieces of text in their order, with something that varies between them."""

    def __init__(self, anchors: Sequence[str], *, starts: bool, ends: bool) -> None:
        self.anchors = tuple(anchors)
        self.has_short_ends = any(len(anchor.strip()) < _MIN_ANCHOR for anchor in anchors)
        gaps = "(.*?)".join(map(re.escape, anchors))
        self._pattern = re.compile(f"{'' if starts else '(.*?)'}{gaps}{'' if ends else '(.*)'}", re.DOTALL)

    def values(self, prompt: str) -> tuple[str, ...] | None:
        """Return what stands in the gaps of the template; None if the prompt does not follow it."""
        found = self._pattern.fullmatch(prompt)
        return tuple(value.strip() for value in found.groups()) if found else None

    @property
    def in_words(self) -> str:
        """The template on one line, with … for what varies."""
        return " … ".join(" ".join(anchor.split()) for anchor in self.anchors)


def find_template(prompts: Sequence[str]) -> PromptTemplate | None:
    """Return the template that most prompts follow; None if they share no constant text."""
    different = list(dict.fromkeys(prompts))
    if len(different) < 3:
        return None
    step = max(1, len(different) // _SAMPLE)
    sample = [_PIECES.findall(prompt) for prompt in different[::step]][:_SAMPLE]
    for start in sample[:3]:  # the first may be one of the few that follow no template
        blocks = [start]
        for other in sample:
            common = _common(blocks, other)
            if sum(map(_size, common)) >= MIN_CONSTANT_CHARACTERS:
                blocks = common
        for template in _templates(blocks, start):
            followed = sum(template.values(prompt) is not None for prompt in prompts)
            if followed >= (1 if template.has_short_ends else MIN_SHARE) * len(prompts):
                return template
    return None


def _templates(blocks: list[list[str]], start: list[str]) -> Iterator[PromptTemplate]:
    """Yield the template of these blocks, first with short pieces at its ends, which may belong to the case."""
    starts, ends = blocks[0] == start[: len(blocks[0])], blocks[-1] == start[-len(blocks[-1]) :]
    last = len(blocks) - 1
    anchors = [
        _trimmed("".join(block), before=i > 0 or not starts, after=i < last or not ends)
        for i, block in enumerate(blocks)
    ]
    long = {i for i, anchor in enumerate(anchors) if len(anchor.strip()) >= _MIN_ANCHOR}
    marks = {i for i in (*[0] * starts, *[last] * ends) if _MARK.search(anchors[i])}
    for kept in (sorted(long | marks), sorted(long)):
        if sum(len(anchors[i].strip()) for i in kept) >= MIN_CONSTANT_CHARACTERS:
            yield PromptTemplate([anchors[i] for i in kept], starts=starts and 0 in kept, ends=ends and last in kept)


def _trimmed(anchor: str, *, before: bool, after: bool) -> str:
    """Return the constant text without words at its sides that all cases share: a case begins and ends at a mark."""
    if after and (mark := _LAST_MARK.match(anchor)):
        anchor = mark.group()
    if before and (first := _FIRST_MARK.search(anchor)) and len(first.group().strip()) >= 3:
        anchor = first.group()
    return anchor


def _size(block: Sequence[str]) -> int:
    return len("".join(block).strip())


def _common(blocks: Sequence[list[str]], other: list[str]) -> list[list[str]]:
    """Return the pieces of the blocks that also stand in `other`, in order."""
    whole = [piece for block in blocks for piece in [*block, "\0"]]
    matcher = SequenceMatcher(None, whole, other, autojunk=False)
    return [whole[m.a : m.a + m.size] for m in matcher.get_matching_blocks() if m.size]
