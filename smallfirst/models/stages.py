"""Who answered: the one reading of the stage that routes and stored rows name."""

from __future__ import annotations

from enum import StrEnum

OUT_OF_SCOPE = "out_of_scope"
"""Stage of a request that no model was asked: the task's settings say what it is told."""


class Answerer(StrEnum):
    """Who gave an answer. Stages are stored by these names, a small model's by that of its candidate."""

    SMALL = "small"
    LARGE = "large"
    GENERAL = "general"
    """The model for requests that are none of the task's, or that a policy sends to it."""
    PERSON = "person"
    NOBODY = "nobody"


_BY_STAGE = {OUT_OF_SCOPE: Answerer.NOBODY, "": Answerer.NOBODY} | {one.value: one for one in Answerer}
NOT_SMALL = tuple(stage for stage, one in _BY_STAGE.items() if one is not Answerer.SMALL)
"""The stages at which no small model answered, for a query."""


def answerer(stage: str | None) -> Answerer:
    """Return who answers at a stage: any name that is not another's is that of a small model."""
    return _BY_STAGE.get(stage or "", Answerer.SMALL)
