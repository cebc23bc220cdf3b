"""What a wording is: an instruction in a frame, an answer format, and when it is in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Use(NamedTuple):
    """One wording in use: an instruction in a frame, an answer format, and when."""

    task: str
    frame: str
    version: int
    """Of the instruction: 1 or 2."""
    answer: str
    """label, frame, json, compact, indent, fence, tool or text."""
    since: float = 0.0
    """Share of the month that has passed when it comes into use."""
    until: float = 1.0
    weight: float = 1.0


Turns = list[tuple[str, str]]
Shots = Sequence[tuple[str, str]]
Frame = Callable[[str, tuple[str, ...], Shots], Turns]
