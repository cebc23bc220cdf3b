"""How answers of a task are judged, their comparison with drafts that were passed on, and what a version may answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, NamedTuple

from smallfirst.gate.outcome import Outcome
from smallfirst.models.protocol import Completion
from smallfirst.routing.router import Decision, Router
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


async def note_difference(completion: Completion, decision: Decision, agrees: Callable[[str, str], bool]) -> Completion:
    """Return the answer with a note in its last step if another model gave it and it differs from the draft."""
    route, draft = completion.route, decision.draft
    if decision.model is None or draft is None or route is None or route.trail[-1].decision != "answered":
        return completion
    if await asyncio.to_thread(agrees, draft.text, completion.text):
        return completion
    trail = (*route.trail[:-1], route.trail[-1].model_copy(update={"differs": True}))
    return completion.model_copy(update={"route": route.model_copy(update={"trail": trail})})


def outcome_of(router: Router) -> Outcome:
    """Return the outcome of a version that brings none: what its certificate lets it answer."""
    certificate = router.certificate
    live, keeps = certificate.issued, certificate.below == "keep"
    rest: Literal["", "large", "person"] = "" if keeps else "person" if certificate.below == "abstain" else "large"
    return Outcome(
        kind="keep the large model" if not live else "small alone" if keeps else "small first",
        title=router.stages[-1].model.name,
        promise=router.guarantee if certificate.issued else "",
        large=router.large is not None,
        rest=rest if live and (router.large or rest != "large") else "",
        watched_by="" if not certificate.issued else "large" if router.large else "person",
        why="" if certificate.issued else certificate.why,
    )
