"""The small model's answers to unlabelled requests, with the confidence that they have when they are served."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smallfirst.data.dataset import Dataset, Example
from smallfirst.errors import StageMissing
from smallfirst.models.manifest import read_manifest
from smallfirst.pipeline.confidence_heads import ConfidenceHeads, drafts_of, fit_heads, head_confidences
from smallfirst.pipeline.router_setup import cascade_stages, fit_profile, served_rows
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.records import fingerprint


class Draft(NamedTuple):
    """One unlabelled request with the small model's answer."""

    example: Example
    answer: str | None
    confidence: float


class TrafficDrafts(NamedTuple):
    """What the small model of a run says to unlabelled requests, and how right it was on labelled ones."""

    reached: tuple[Draft, ...]
    """Requests that reach the cascade; the others are sent elsewhere by the domain check or a policy."""
    n_requests: int
    """All of them."""
    pilot_confidence: np.ndarray
    """Of the selection and calibration rows."""
    pilot_right: np.ndarray
    heads_fingerprint: str


async def draft_traffic(project: Project, run_folder: RunFolder, candidate: str, traffic: Dataset) -> TrafficDrafts:
    """Return what the candidate answers, as it would be served.

    Raise StageMissing if it was not evaluated.
    """
    profile = fit_profile(project, run_folder)
    rows = project.rows
    elsewhere = project._replace(rows=rows.model_copy(update={"calibration": traffic}))
    stages = cascade_stages(project, run_folder, get_candidate(candidate).load(project, run_folder))
    last = stages[-1]
    pilot = rows.selection.subset("pilot", (*rows.selection.examples, *rows.calibration.examples))
    known = {
        row.key: row
        for split in ("selection", "calibration")
        if (found := run_folder.evaluation(candidate, split))
        for row in found.rows
    }
    if not known:
        raise StageMissing(f"{candidate} was not evaluated", hint="smallfirst evaluate task.yaml")
    try:
        heads, _ = await fit_heads(project, stages, profile)
        own, _, _ = await served_rows(elsewhere, run_folder, heads)
        drafts = await drafts_of(last, own)
        said = (await head_confidences(heads, stages, own, profile=profile)).get(last.name, {})
        headed = (await head_confidences(heads, stages, pilot, profile=profile)).get(last.name, {})
    finally:
        for stage in stages:
            await stage.model.aclose()
    reached = tuple(
        Draft(e, project.task.parse(d.text), said.get(e.key, d.confidence or 0.0))
        for e, d in zip(own.examples, drafts, strict=True)
    )
    seen = [known[e.key] for e in pilot.examples if e.key in known]
    confidence = np.array([headed.get(row.key, row.confidence or 0.0) for row in seen])
    right = np.array([row.correct for row in seen], dtype=bool)
    return TrafficDrafts(reached, len(traffic), confidence, right, heads_fingerprint(heads))


def heads_fingerprint(heads: ConfidenceHeads) -> str:
    """Return what tells these heads from others; empty without any."""
    left_out = set() if heads.acceptance else {"acceptance"}
    known = heads.by_stage or heads.acceptance
    return fingerprint(heads.model_dump(mode="json", exclude=left_out)) if known else ""


def model_fingerprint(run_folder: RunFolder, candidate: str) -> str:
    """Return the weights of a run's candidate; the run itself where they have no fingerprint."""
    return read_manifest(run_folder.model_folder(candidate)).weights_fingerprint or run_folder.path.name
