"""Questions that a taken-over task answers: its certified label, with the probability of every option."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallfirst.gateway.decisions.responses import Answered
from smallfirst.gateway.decisions.upstream import Probabilities
from smallfirst.models.protocol import Completion, label_probability_model
from smallfirst.traffic.decisions.question import Question, Usage, Verdict

if TYPE_CHECKING:  # a proxy without tasks needs no models
    from smallfirst.gateway.takeover.live_task import Ruling


async def answer_small(ruling: Ruling, question: Question) -> Answered | None:
    """Return the small model's certified answer, or None: then the upstream answers."""
    small = ruling.small
    if small is None or small.text not in question.labels:
        return None
    known = await _probabilities(ruling, small)
    given = [max(0.0, known.get(label, 0.0)) for label in question.labels]
    total = sum(given)
    verdict = Verdict(tuple(p / total for p in given)) if total else Verdict()
    if verdict.refused or question.labels[verdict.best] != small.text:
        return None  # the certificate is about the label: probabilities that prefer another one are not shown
    usage = Usage(small.prompt_tokens, small.completion_tokens)
    worth: Probabilities = "calibrated to the large model" if ruling.task.agreement else "calibrated"
    return Answered(verdict, small.answered_by, worth, ruling.task.taken.task, usage)


async def _probabilities(ruling: Ruling, small: Completion) -> dict[str, float]:
    """Return the probability of each label: from the answer where it names all, else from the model that gave it."""
    model = next((one.model for one in ruling.task.router.router.stages if one.model.name == small.answered_by), None)
    scoring = label_probability_model(model) if model is not None else None
    if scoring is None or sum(p for _, p in small.alternatives) > 1 - 1e-9:
        return dict(small.alternatives) or {small.text: 1.0}
    (scores,) = await scoring.probabilities([ruling.asked.text])
    return dict(zip(scores.labels, scores.probabilities, strict=True))
