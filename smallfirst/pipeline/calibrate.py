"""From a promoted candidate to what its Router stands on: heads, certificate, reference, signature.

Everything is kept with the model's version in the registry, so that what is served is what was certified. The order
matters: selection rows decide what the confidences are, then calibration rows certify them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from smallfirst.data.dataset import Dataset
from smallfirst.errors import StageMissing
from smallfirst.evaluation.evaluate import EvaluationSetup, restrict_to_rows
from smallfirst.evaluation.results import Evaluation
from smallfirst.models.manifest import read_manifest
from smallfirst.pipeline.candidates import fit_ood_detectors, in_domain_rows, load_candidate
from smallfirst.pipeline.confidence_heads import (
    HEADS,
    ConfidenceHeads,
    fit_difficulty,
    fit_heads,
    head_confidences,
    with_confidences,
)
from smallfirst.pipeline.proxy_labels import certify_from_proxy_labels
from smallfirst.pipeline.router_setup import cascade_stages, save_reference
from smallfirst.project.project import Project
from smallfirst.project.run_folder import Promotion, RunFolder
from smallfirst.registry import versions
from smallfirst.routing.certificate.certificate import Certificate, certify
from smallfirst.routing.certificate.outcomes import with_routing_cost
from smallfirst.routing.types import OodScore, Stage


def certify_promoted(project: Project, run_folder: RunFolder) -> tuple[Certificate, ConfidenceHeads]:
    """The certificate of the promoted model and the heads it rests on, both kept with its version.

    Raises StageMissing if a drafting stage was not evaluated.
    """
    promoted, routing = run_folder.promoted(), project.file.routing
    fit_ood_detectors(project, run_folder)
    own, doubts = asyncio.run(in_domain_rows(project, run_folder))
    heads, confidence = asyncio.run(_learnt(project, run_folder, promoted, own))
    names = dict(zip((*routing.ahead, "small"), (*routing.ahead, promoted.candidate), strict=True))
    drafts = [
        with_confidences(_on(project, run_folder, c, own), confidence.get(stage, {})) for stage, c in names.items()
    ]
    drafts[0] = _paying_for(doubts, drafts[0])
    large = run_folder.evaluation("large", "calibration")
    certificate = _certified(project, run_folder, promoted, (drafts, large))
    certificate.save(run_folder.folder / "certificate.json")
    for filename, kept in (("certificate.json", certificate), (HEADS, heads)):
        versions.attach(promoted.name, promoted.version, filename, kept.model_dump_json(indent=2).encode())
    values = [doubt.value for doubt in doubts]
    save_reference(project, (promoted.name, promoted.version), drafts[-1], values, large)
    project.progress.log(f"certificate: {certificate.why}")
    project.progress.log(f"below the threshold: {certificate.below} ({certificate.below_why})")
    return certificate, heads


def _paying_for(doubts: Sequence[OodScore], first: Evaluation) -> Evaluation:
    """The first draft with the domain check's mean price and time on each row: every request pays for the look."""
    if not doubts:
        return first
    cost_usd, latency_ms = (sum(values) / len(doubts) for values in zip(*(doubt[1:] for doubt in doubts), strict=True))
    return with_routing_cost(first, cost_usd=cost_usd, latency_ms=latency_ms)


def _certified(
    project: Project, run_folder: RunFolder, promoted: Promotion, measured: tuple[list[Evaluation], Evaluation | None]
) -> Certificate:
    (drafts, large), routing = measured, project.file.routing
    manifest = read_manifest(run_folder.model_folder(promoted.candidate))
    made: dict[str, Any] = {"model_fingerprint": manifest.weights_fingerprint, "temperature": manifest.temperature}
    if routing.labels == "large" and project.file.data.gold:
        return certify_from_proxy_labels(project, drafts[-1], **made)
    return certify(drafts, large, routing.promise, person=routing.person, labels=routing.labels, **made)


async def _learnt(
    project: Project, run_folder: RunFolder, promoted: Promotion, own: Dataset
) -> tuple[ConfidenceHeads, dict[str, dict[str, float]]]:
    """What is learnt on selection rows, and the confidences of calibration rows under it, by stage and row key."""
    stages = cascade_stages(project, run_folder, load_candidate(project, run_folder, promoted.candidate))
    try:
        heads, drafts = await fit_heads(project, stages)
        if any(policy.kind == "difficulty" for policy in project.file.routing.policies):
            fit_difficulty(project, drafts[stages[-1].name], run_folder.folder)
        return heads, await head_confidences(heads, stages, own)
    finally:
        await _close(stages)


async def _close(stages: tuple[Stage, ...]) -> None:
    for stage in stages:
        await stage.model.aclose()


def _on(project: Project, run_folder: RunFolder, candidate: str, rows: Dataset) -> Evaluation:
    """A candidate's evaluation on some of the calibration rows. Raises StageMissing if it was not measured."""
    found = run_folder.evaluation(candidate, "calibration")
    if found is None:
        raise StageMissing(f"{candidate} was not evaluated", hint="smallfirst evaluate task.yaml")
    if len(rows) == len(found.rows):
        return found
    return restrict_to_rows(found, EvaluationSetup(project.task, rows, split="calibration"))
