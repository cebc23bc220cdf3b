"""Questions that a taken-over task answers: its certified label, with the probability of every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from smallfirst.gateway.decisions.responses import Answered
from smallfirst.gateway.decisions.upstream import Probabilities
from smallfirst.gateway.takeover.upstream import Asked
from smallfirst.models.protocol import Completion, label_probability_model
from smallfirst.traffic.decisions.question import DecisionRequest, Question, Usage, Verdict
from smallfirst.traffic.messages import Prompt, question_prompt

if TYPE_CHECKING:  # a proxy without tasks needs no models
    from smallfirst.gateway.takeover.live_task import LiveTask, Ruling


class Tasks(Protocol):
    """The taken-over tasks of a proxy."""

    def find(self, prompt: Prompt) -> tuple[LiveTask, str] | None:
        """Return the task that a prompt follows, and the case that it asks about."""


class Ruled(NamedTuple):
    """A question that follows a task, and who answers it."""

    task: LiveTask
    ruling: Ruling


async def rule(
    tasks: Tasks, question: Question, request: DecisionRequest, asked: Callable[[str], Asked]
) -> Ruled | None:
    """Return the task of a question and who answers it, or None. `asked` makes the request of a case."""
    prompt = question_prompt(request.model, question, request)
    found = None if prompt.has_media else tasks.find(prompt)
    if found is None:
        return None
    task, text = found
    return Ruled(task, await task.rule(asked(text)))


async def answer_small(ruled: Ruled, question: Question) -> Answered | None:
    """Return the small model's certified answer, or None: then the upstream answers."""
    small = ruled.ruling.small
    if small is None or small.text not in question.labels:
        return None
    known = await _probabilities(ruled, small)
    given = [max(0.0, known.get(label, 0.0)) for label in question.labels]
    total = sum(given)
    verdict = Verdict(tuple(p / total for p in given)) if total else Verdict()
    if verdict.refused or question.labels[verdict.best] != small.text:
        return None  # the certificate is about the label: probabilities that prefer another one are not shown
    usage = Usage(small.prompt_tokens, small.completion_tokens)
    worth: Probabilities = "calibrated to the large model" if ruled.task.agreement else "calibrated"
    return Answered(verdict, small.answered_by, worth, ruled.task.taken.task, usage)


async def _probabilities(ruled: Ruled, small: Completion) -> dict[str, float]:
    """Return the probability of each label: from the answer where it names all, else from the model that gave it."""
    model = next((one.model for one in ruled.task.router.router.stages if one.model.name == small.answered_by), None)
    scoring = label_probability_model(model) if model is not None else None
    if scoring is None or sum(p for _, p in small.alternatives) > 1 - 1e-9:
        return dict(small.alternatives) or {small.text: 1.0}
    (scores,) = await scoring.probabilities([ruled.ruling.asked.text])
    return dict(zip(scores.labels, scores.probabilities, strict=True))
