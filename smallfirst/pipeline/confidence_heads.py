"""What a Router learns on selection rows: how far each stage's drafts may be believed, and which requests are too hard.

Selection rows choose and never certify, so nothing here weakens a promise. A head is kept only where held-out rows show
that it foretells right and wrong clearly better than the model's own confidence; most are not, with a few hundred rows.
The price is one answer of every stage to each selection row, and to each calibration row where a head was kept.
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
"""What is kept beside the certificate."""
DIFFICULTY = "difficulty"
"""Folder of the learned difficulty in a run's folder."""


class ConfidenceHeads(Record):
    """The heads that were kept, by stage."""

    by_stage: dict[str, DraftHead] = {}
    """A stage without one takes its model's own confidence."""

    def on(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """The stages, each with its head."""
        return tuple(stage._replace(head=self.by_stage.get(stage.name)) for stage in stages)


async def fit_heads(project: Project, stages: Sequence[Stage]) -> tuple[ConfidenceHeads, dict[str, list[Completion]]]:
    """The heads that help, and every stage's drafts of the selection rows."""
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
    """The learned difficulty of the last stage's selection rows, kept in `folder`."""
    rows = project.rows.selection.examples
    right = [is_correct(project, e.golds, draft) for e, draft in zip(rows, drafts, strict=True)]
    found = DifficultyModel.fit([e.text for e in rows], right)
    found.save(folder / DIFFICULTY)
    project.progress.log(f"difficulty: {found.fitted.why}")
    return found


async def head_confidences(
    heads: ConfidenceHeads, stages: Sequence[Stage], rows: Dataset
) -> dict[str, dict[str, float]]:
    """By stage that has a head, the confidence of its draft by row key."""
    if not heads.by_stage:
        return {}
    drafts = {stage.name: await drafts_of(stage, rows) for stage in stages}
    found: dict[str, dict[str, float]] = {}
    before: list[Completion] | list[None] = [None] * len(rows)
    for stage in stages:
        mine, head = drafts[stage.name], heads.by_stage.get(stage.name)
        if head is not None:
            said = [head.confidence(draft, cheaper) for draft, cheaper in zip(mine, before, strict=True)]
            found[stage.name] = {e.key: value for e, value in zip(rows.examples, said, strict=True)}
        before = mine
    return found


def with_confidences(evaluation: Evaluation, confidence: Mapping[str, float]) -> Evaluation:
    """The evaluation with other confidences, by row key; the same one without any."""
    if not confidence:
        return evaluation
    rows = tuple(row.model_copy(update={"confidence": confidence[row.key]}) for row in evaluation.rows)
    return evaluation.model_copy(update={"rows": rows})


async def drafts_of(stage: Stage, rows: Dataset) -> list[Completion]:
    """A stage's drafts, asked together."""
    asked = [stage.model.complete(Request(messages=e.messages)) for e in rows.examples]
    return list(await asyncio.gather(*asked))


def is_correct(project: Project, golds: Sequence[str], draft: Completion) -> bool:
    """Whether the task calls a draft right."""
    return project.task.score(golds, project.task.parse(draft.text)) >= project.task.pass_score
