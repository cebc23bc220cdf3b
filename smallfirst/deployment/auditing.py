"""How answers of a task are judged, and the comparison of an answer with the draft that was passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from smallfirst.models.protocol import Completion, Model
from smallfirst.routing.types import Decision
from smallfirst.tasks.task import Task


class AuditSettings(NamedTuple):
    """How answers of one task are judged."""

    judge: Literal["large", "person"]
    agrees: Callable[[str, str], bool]
    """Return True if the first answer (the draft) agrees with the second one (the judge's).

    It runs in a thread: the score of a long extraction takes its time.
    """
    store_bodies: bool = False
    task: Task | None = None
    """What answers may be, for those who mark them."""
    others: Callable[[], Sequence[Model]] = tuple
    """Load cheap candidates of the same run that do not answer, whose word shows which answers are in doubt."""


async def note_difference(completion: Completion, decision: Decision, agrees: Callable[[str, str], bool]) -> Completion:
    """Return the answer with a note in its last step if another model gave it and it differs from the draft."""
    route, draft = completion.route, decision.draft
    if decision.model is None or draft is None or route is None or route.trail[-1].decision != "answered":
        return completion
    if await asyncio.to_thread(agrees, draft.text, completion.text):
        return completion
    trail = (*route.trail[:-1], route.trail[-1].model_copy(update={"differs": True}))
    return completion.model_copy(update={"route": route.model_copy(update={"trail": trail})})
