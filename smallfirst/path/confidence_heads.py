"""Fit on the rows that choose: confidence heads of the stages, and the gain of the large model.

These are out-of-fold answers to training and selection rows, or answers to selection rows. They never certify, so
nothing here weakens a guarantee. A head is kept only if held-out rows show that it
predicts correct answers clearly better than the model's own confidence; with a few hundred rows most heads are not. It
takes one answer of every stage to each selection row, and to each calibration row where a head is kept.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smallfirst.base.errors import NotRecorded
from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset, Example
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.out_of_fold import FoldAnswers
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.path.large_model import answers_so_far
from smallfirst.path.project.project import Project, own_validation
from smallfirst.routing.acceptance import AcceptanceScore, foreign_rows
from smallfirst.routing.confidence_head import DraftHead
from smallfirst.routing.domain import MeasuredText, TaskProfile
from smallfirst.routing.gain import LARGE, SMALL, GainModel
from smallfirst.routing.router import Stage

HEADS = "heads.json"
"""File beside the certificate."""
GAIN = "gain"
"""Folder of the fitted gain in a run folder."""


class ConfidenceHeads(Record):
    """The heads that were kept."""

    by_stage: dict[str, DraftHead] = {}
    """Head by stage; a stage without one uses its model's own confidence."""
    acceptance: dict[str, AcceptanceScore] = {}
    """By stage the score of confidence and distance together; empty where no domain check is served."""

    def on(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        return tuple(
            stage._replace(head=self.by_stage.get(stage.name), acceptance=self.acceptance.get(stage.name))
            for stage in stages
        )


class HeldOut(NamedTuple):
    """Answers to rows that the model which gave them had not seen."""

    rows: Dataset
    drafts: dict[str, list[Completion]]
    """By stage, in the order of the rows."""


async def fit_heads(
    project: Project,
    stages: Sequence[Stage],
    profile: TaskProfile | None = None,
    *,
    folds: Mapping[str, FoldAnswers] | None = None,
) -> tuple[ConfidenceHeads, HeldOut]:
    """Return the heads that help, and the answers that they were fitted on.

    `folds` are the out-of-fold answers of stages that were fitted in folds. `profile` is that of the domain check which
    is served: with it foreign rows are asked as well.
    """
    held = await _held_out(project, stages, folds or {})
    rows, drafts = held
    right = {
        name: [is_correct(project, e.golds, draft) for e, draft in zip(rows.examples, mine, strict=True)]
        for name, mine in drafts.items()
    }
    before = _drafts_before(stages, drafts)
    heads = {name: DraftHead.fit(mine, right[name], others=before[name]) for name, mine in drafts.items()}
    heads = {name: head for name, head in heads.items() if head.weights}
    for name, head in heads.items():
        project.progress.log(f"confidence of {name}: {head.why}")
    found = ConfidenceHeads(by_stage=heads)
    if profile is not None:
        acceptance = await _fit_acceptance(project, found.on(stages), held, right, profile)
        found = found.model_copy(update={"acceptance": acceptance})
    return found, held


async def _held_out(project: Project, stages: Sequence[Stage], folds: Mapping[str, FoldAnswers]) -> HeldOut:
    """Return every stage's answers to training and selection rows out of fold.

    To selection rows alone if a stage has none, or if training rows may be unlike those that certify.
    """
    rows, n = project.rows.development, len(project.rows.selection)
    known = {name: one.completions(name) for name, one in folds.items()}
    if all(stage.name in known for stage in stages) and not own_validation(project):
        return HeldOut(rows, known)
    rows = project.rows.selection
    asked = {s.name: known[s.name][-n:] if s.name in known and n else await drafts_of(s, rows) for s in stages}
    return HeldOut(rows, asked)


async def _fit_acceptance(
    project: Project,
    stages: Sequence[Stage],
    held: HeldOut,
    right: Mapping[str, Sequence[bool]],
    profile: TaskProfile,
) -> dict[str, AcceptanceScore]:
    (rows, drafts), (foreign, _) = held, foreign_rows(project.rows.open_ended)
    own, theirs = await _confidences(stages, rows, drafts), await _confidences(stages, foreign)
    features, others = (np.array([one.features for one in profile.measure_rows(part)]) for part in (rows, foreign))
    found: dict[str, AcceptanceScore] = {}
    share = project.file.routing.guarantee.max_foreign_share
    for name in drafts:
        score = AcceptanceScore.fit((own[name], features, right[name]), (theirs[name], others), share=share)
        found |= {} if score is None else {name: score}
    if not found:
        project.progress.log(f"foreign requests are not told apart: {len(rows)} rows are too few")
    return found


class ForeignDrafts(NamedTuple):
    """What foreign calibration rows get."""

    confidence: list[list[float]]
    """By stage, as it is served; empty where no domain check is."""
    n_outside: int = 0
    """Rows that the domain check by itself calls foreign."""


async def foreign_drafts(
    project: Project, heads: ConfidenceHeads, stages: Sequence[Stage], profile: TaskProfile | None
) -> ForeignDrafts:
    """Return the confidences of foreign rows that nothing was fitted on."""
    if profile is None or not heads.acceptance:
        return ForeignDrafts([])
    _, rows = foreign_rows(project.rows.open_ended)
    measured = profile.measure_rows(rows)
    said = await _confidences(heads.on(stages), rows, measured=measured)
    n_outside = sum(one.ood_score > profile.threshold for one in measured)
    return ForeignDrafts([said[stage.name] for stage in stages], n_outside)


async def _confidences(
    stages: Sequence[Stage],
    rows: Dataset,
    drafts: Mapping[str, Sequence[Completion]] | None = None,
    measured: Sequence[MeasuredText] | None = None,
) -> dict[str, list[float]]:
    """Return by stage the confidence of its answer to each row, 0 where none is given; `drafts` saves asking again."""
    drafts = drafts or {stage.name: await drafts_of(stage, rows) for stage in stages}
    before = _drafts_before(stages, drafts)
    features = [one.features for one in measured] if measured is not None else [None] * len(rows)
    return {
        s.name: [s.confidence(*one) or 0.0 for one in zip(drafts[s.name], before[s.name], features, strict=True)]
        for s in stages
    }


async def fit_gain(project: Project, held: HeldOut, stage: str, folder: Path) -> GainModel:
    """Fit the gain on a stage's and the large model's answers to the rows that choose; save it in `folder`.

    Only recorded answers of the large model count, none is asked for; without any it is taken to be always right.
    """
    rows, drafts = held.rows.examples, held.drafts[stage]
    outcomes: dict[str, list[float]] = {
        SMALL: [float(is_correct(project, e.golds, draft)) for e, draft in zip(rows, drafts, strict=True)]
    }
    if recorded := answers_so_far(project.file, project.task):
        large = [await _recorded_outcome(project, recorded, example) for example in rows]
        if not all(map(math.isnan, large)):
            outcomes[LARGE] = large
    found = GainModel.fit([e.text for e in rows], outcomes)
    found.save(folder / GAIN)
    project.progress.log(f"gain: {found.fitted.why}")
    return found


def load_gain(folder: Path) -> GainModel | None:
    """Return the gain model of a run folder; None without one."""
    return GainModel.load(folder / GAIN)


async def _recorded_outcome(project: Project, recorded: Model, example: Example) -> float:
    """Return 1 or 0 for a right or wrong recorded answer, NaN for none."""
    try:
        answer = await recorded.complete(Request(messages=example.messages))
    except NotRecorded:
        return math.nan
    return float(is_correct(project, example.golds, answer))


async def head_confidences(
    heads: ConfidenceHeads,
    stages: Sequence[Stage],
    rows: Dataset,
    drafts: Mapping[str, Sequence[Completion]] | None = None,
    *,
    profile: TaskProfile | None = None,
) -> dict[str, dict[str, float]]:
    """Return the confidence of each answer by row key, for each stage whose model's own is not used as it is.

    `drafts` saves asking again; `profile` is needed where the heads have an acceptance score.
    """
    if not heads.by_stage and not heads.acceptance:
        return {}
    measured = profile.measure_rows(rows) if profile and heads.acceptance else None
    said = await _confidences(heads.on(stages), rows, drafts, measured)
    return {
        name: {e.key: value for e, value in zip(rows.examples, values, strict=True)}
        for name, values in said.items()
        if name in heads.by_stage or name in heads.acceptance
    }


def _drafts_before(
    stages: Sequence[Stage], drafts: Mapping[str, Sequence[Completion]]
) -> dict[str, list[tuple[Completion, ...]]]:
    """Return by stage, for each row, what its head compares the draft with: the draft of the stage before."""
    names = [stage.name for stage in stages]
    found: dict[str, list[tuple[Completion, ...]]] = {names[0]: [()] * len(drafts[names[0]])}
    return found | {name: [(draft,) for draft in drafts[before]] for before, name in pairwise(names)}


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
