"""Teacher: a larger model of the same vocabulary whose probabilities a small one learns beside the right answers.

It stands beside the student in memory and reads every batch with it: with a teacher of twice the size a step takes
about twice as long.
"""

from __future__ import annotations

import pydantic

from smallfirst.records import Record


class TeacherConfig(Record):
    """From whom a fine-tune also learns, and how much."""

    base: str
    """Name or folder of a causal model with the student's vocabulary; for closed answers a folder written by training
    for the same labels."""
    weight: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of the loss that is distance to the teacher; the rest is cross-entropy with the right answers."""
    temperature: float = pydantic.Field(default=2.0, gt=0, allow_inf_nan=False)
    """Divides the logits of both before they are compared; above 1 unlikely answers count for more."""
