"""GEPA over the instructions of the large model (Agrawal et al. 2025, arXiv 2507.19457; package `gepa`).

It keeps the prompts that are best on some row, has a model rewrite one after reading answers and what was wrong with
them, and keeps the rewriting if it is better on the same few rows. The job alone is rewritten; allowed answers and
format stand after it, so no proposal can lose them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from smallfirst.data.dataset import Example
from smallfirst.tasks.task import Task

PART = "instructions"
"""The one part of the prompt that is searched."""
ROWS_READ = 6
"""Rows that a proposal is made from, and compared on with the prompt that it rewrites."""
_REQUEST = """I gave an assistant these instructions for a job:
```
<curr_param>
```
They stand at the place of [INSTRUCTIONS] in the message that it reads first:
```
{frame}
```
These are inputs, its answers, and what was right:
```
<side_info>
```
Write better instructions for the place of [INSTRUCTIONS]. Say what tells apart the answers that were confused, and \
every fact about the job that the inputs show and a newcomer could not know. Do not repeat the list of answers or the \
format, do not copy the inputs, and use at most 200 words. Give the new instructions alone, within ``` blocks."""


class Answered(NamedTuple):
    """One row under one prompt."""

    example: Example
    answer: str
    """As the model wrote it; empty if it gave none."""
    score: float
    """In [0, 1]."""


Evaluate = Callable[[str, Sequence[Example]], list[Answered]]
"""Returns the rows answered under these instructions."""


class InstructionsAdapter:
    """What GEPA asks of a system: answers with scores, and texts about them to learn from."""

    propose_new_texts = None  # GEPA's own proposals, from the texts about the answers

    def __init__(self, evaluate: Evaluate, task: Task) -> None:
        self._evaluate, self._task = evaluate, task

    def evaluate(self, batch: list[Example], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        """Return GEPA's EvaluationBatch of the rows."""
        from gepa.core.adapter import EvaluationBatch

        rows = self._evaluate(candidate[PART], batch)
        trajectories = rows if capture_traces else None
        return EvaluationBatch(rows, [row.score for row in rows], trajectories, num_metric_calls=len(rows))

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return for each row what was asked, what was answered and what was wrong with it."""
        return {PART: [self._lesson(row) for row in eval_batch.trajectories]}

    def _lesson(self, row: Answered) -> dict[str, str]:
        golds, said = row.example.golds, self._task.parse(row.answer)
        feedback = "Right."
        if row.score < self._task.pass_score:
            fields = self._task.wrong_fields(golds, said)
            feedback = "No answer in the format asked for. " if said is None else "Wrong. "
            feedback += f"Wrong fields: {', '.join(fields)}. " if fields and said is not None else ""
            feedback += f"Right would be: {golds[0]}"
        return {"Input": row.example.text, "Answer": row.answer, "Feedback": feedback}


def search_instructions(
    start: str,
    task: Task,
    *,
    feedback: Sequence[Example],
    scored: Sequence[Example],
    evaluate: Evaluate,
    propose: Callable[[str], str],
    max_answers: int,
    is_done: Callable[[], bool],
    log: Callable[[str], None],
) -> None:
    """Search from `start` until about `max_answers` rows were answered, or `is_done` after a round.

    `evaluate` sees every prompt that is tried. Proposals are made from `feedback` rows and compared on `scored` rows.
    An error of `evaluate` ends the search and is raised; one of `propose` ends it after the round.
    """
    from gepa.api import optimize

    failed: list[Exception] = []

    def proposal(request: str | list[dict[str, Any]]) -> str:
        text = request if isinstance(request, str) else "\n".join(str(message["content"]) for message in request)
        try:
            return propose(text)
        except Exception as error:
            failed.append(error)
            raise

    frame = task.model_copy(update={"about": "[INSTRUCTIONS]"}).system_message()
    adapter: Any = InstructionsAdapter(evaluate, task)
    reflect: Any = proposal
    optimize(
        seed_candidate={PART: start},
        trainset=list(feedback),
        valset=list(scored),
        adapter=adapter,
        reflection_lm=reflect,
        reflection_prompt_template=_REQUEST.replace("{frame}", frame),
        reflection_minibatch_size=min(ROWS_READ, len(feedback)),
        max_metric_calls=max_answers,
        stop_callbacks=lambda state: bool(failed) or is_done(),
        logger=_Log(log),
        seed=0,
    )
    if failed:
        raise failed[0]


class _Log:
    """GEPA's logger: its first lines only, since a whole prompt may follow."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def log(self, message: str) -> None:
        self._log(f"GEPA: {message.splitlines()[0][:160]}" if message else "GEPA")
