"""Fit on selection rows: confidence heads of the stages, and the difficulty of requests.

Selection rows never certify, so nothing here weakens a guarantee. A head is kept only if held-out rows show that it
predicts correct answers clearly better than the model's own confidence; with a few hundred rows most heads are not. It
takes one answer of every stage to each selection row, and to each calibration row where a head is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from smallfirst.data.dataset import Dataset
from smallfirst.evaluation.results import Evaluation
from smallfirst.models.protocol import Completion, Request
from smallfirst.project.project import Project
from smallfirst.records import Record
from smallfirst.routing.confidence_head import DraftHead
from smallfirst.routing.difficulty import DifficultyModel
from smallfirst.routing.types import Stage

HEADS = "heads.json"
"""File beside the certificate."""
DIFFICULTY = "difficulty"
"""Folder of the fitted difficulty in a run folder."""


class ConfidenceHeads(Record):
    """The heads that were kept."""

    by_stage: dict[str, DraftHead] = {}
    """Head by stage; a stage without one uses its model's own confidence."""

    def on(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages with their heads."""
        return tuple(stage._replace(head=self.by_stage.get(stage.name)) for stage in stages)


async def fit_heads(project: Project, stages: Sequence[Stage]) -> tuple[ConfidenceHeads, dict[str, list[Completion]]]:
    """Return the heads that help, and every stage's answers to the selection rows."""
    rows = project.rows.selection
    drafts = {stage.name: await drafts_of(stage, rows) for stage in stages}
    found: dict[str, DraftHead] = {}
    before: list[Completion] | None = None
    for stage in stages:
        mine = drafts[stage.name]
        right = [is_correct(project, e.golds, draft) for e, draft in zip(rows.examples, mine, strict=True)]
        head = DraftHead.fit(mine, right, cheaper=before)
        if head.weights:
            found[stage.name] = head
            project.progress.log(f"confidence of {stage.name}: {head.why}")
        before = mine
    return ConfidenceHeads(by_stage=found), drafts


def fit_difficulty(project: Project, drafts: Sequence[Completion], folder: Path) -> DifficultyModel:
    """Fit the difficulty on the last stage's answers to the selection rows and save it in `folder`."""
    rows = project.rows.selection.examples
    right = [is_correct(project, e.golds, draft) for e, draft in zip(rows, drafts, strict=True)]
    found = DifficultyModel.fit([e.text for e in rows], right)
    found.save(folder / DIFFICULTY)
    project.progress.log(f"difficulty: {found.fitted.why}")
    return found


async def head_confidences(
    heads: ConfidenceHeads,
    stages: Sequence[Stage],
    rows: Dataset,
    drafts: Mapping[str, Sequence[Completion]] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the confidence of each answer by row key, for each stage that has a head; `drafts` saves asking again."""
    if not heads.by_stage:
        return {}
    drafts = drafts or {stage.name: await drafts_of(stage, rows) for stage in stages}
    found: dict[str, dict[str, float]] = {}
    before: Sequence[Completion | None] = [None] * len(rows)
    for stage in stages:
        mine, head = drafts[stage.name], heads.by_stage.get(stage.name)
        if head is not None:
            said = [head.confidence(draft, cheaper) for draft, cheaper in zip(mine, before, strict=True)]
            found[stage.name] = {e.key: value for e, value in zip(rows.examples, said, strict=True)}
        before = mine
    return found


def with_confidences(evaluation: Evaluation, confidence: Mapping[str, float]) -> Evaluation:
    """Return the evaluation with these confidences by row key; unchanged if there are none."""
    if not confidence:
        return evaluation
    rows = tuple(row.model_copy(update={"confidence": confidence[row.key]}) for row in evaluation.rows)
    return evaluation.model_copy(update={"rows": rows})


async def drafts_of(stage: Stage, rows: Dataset) -> list[Completion]:
    """Return a stage's answers to the rows, asked concurrently."""
    asked = [stage.model.complete(Request(messages=e.messages)) for e in rows.examples]
    return list(await asyncio.gather(*asked))


def is_correct(project: Project, golds: Sequence[str], draft: Completion) -> bool:
    """Return True if the task scores the answer as correct."""
    return project.task.score(golds, project.task.parse(draft.text)) >= project.task.pass_score
