"""The calibration stage: confidence heads, certificate and traffic reference of the promoted model, then the Router.

Everything is attached to the model's version in the registry, so that what is served is what was certified. The
rows that choose fit heads, gain and the domain limit; calibration and, where they may, test rows certify.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from smallfirst.data.dataset import Dataset, fold_text
from smallfirst.evaluation.results import Evaluation
from smallfirst.models.manifest import read_manifest
from smallfirst.pipeline.calibration_set import build_calibration_set
from smallfirst.pipeline.confidence_heads import (
    GAIN,
    HEADS,
    ConfidenceHeads,
    ForeignDrafts,
    fit_gain,
    fit_heads,
    foreign_drafts,
    head_confidences,
    with_confidences,
)
from smallfirst.pipeline.evaluate import measure_router
from smallfirst.pipeline.plans.joined_rows import LOOKS, find_joined
from smallfirst.pipeline.plans.worth import chosen_by
from smallfirst.pipeline.router_setup import (
    CHEAP,
    PROFILE_FOLDER,
    REFERENCE,
    RUN,
    TrafficReference,
    cascade_stages,
    fit_profile,
)
from smallfirst.project.candidate_registry import FINE_TUNED
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project, own_validation, shown_as
from smallfirst.project.run_folder import CERTIFICATE, Promotion, RunFolder
from smallfirst.records import Record, fingerprint
from smallfirst.registry import versions
from smallfirst.routing.certificate.below_threshold import BelowAction
from smallfirst.routing.certificate.certificate import Certificate, certify
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.looks import LARGE, Portion, SharedLook
from smallfirst.routing.certificate.outcomes import ForeignAccepted, max_outside
from smallfirst.routing.certificate.threshold_search import chance_to_show
from smallfirst.routing.ood.detector import KEEP_SHARE

CERTIFIED = "certified.json"
"""File of the latest Certified in a run folder."""
KNOWN_TEXTS = "known_texts.json"
"""File of the KnownTexts in a run folder."""
MIN_CHANCE = 0.2
"""Chance to show the guarantee from which a look takes the large portion of the level."""


class Certified(Record):
    """What certifying a candidate leaves for its version in the registry."""

    candidate: str = ""
    plan: Literal["small alone", "small first"] = "small alone"
    """What it was made for: the candidate after its gate alone, or for the part that the certificate covers."""
    certificate: Certificate
    heads: ConfidenceHeads
    """The confidence heads that it was made with."""
    reference: TrafficReference
    """What live traffic is compared with."""
    confidence: dict[str, float] = {}
    """By key of the calibration and selection rows that a second look counts: confidence of the last stage's draft."""
    foreign: tuple[tuple[float, ...], ...] = ()
    """By stage, the confidences of drafts of foreign requests, where a second look counts them."""


class KnownTexts(Record):
    """The texts of all rows of a run: none of them certifies as one that traffic brought."""

    texts: frozenset[str]
    """Their fingerprints, as `ShadowRow.text` has them."""

    @classmethod
    def of(cls, project: Project) -> KnownTexts:
        rows = project.rows
        parts = (rows.train, rows.selection, rows.calibration, rows.test)
        return cls(texts=frozenset(fingerprint(fold_text(row.text)) for part in parts for row in part.examples))


@shown_as("certifying")
def calibrate_stage(
    project: Project, run_folder: RunFolder, promotion: Promotion | None = None, *, candidate: str = ""
) -> Certificate:
    """Certify a model and measure the Router on test rows; return the certificate.

    It is `candidate`, which passed its gate alone and is not registered yet; or that of a `promotion`, left out the one
    that the run promoted, to whose version the certificate is attached. Raise StageMissing if a stage of the cascade
    was not evaluated.
    """
    promotion = promotion or (None if candidate else run_folder.promoted())
    plan = promotion.plan if promotion else "small alone"
    candidate = promotion.candidate if promotion else candidate
    found = certify_candidate(project, run_folder, candidate, alone=plan == "small alone")
    asyncio.run(measure_router(project, run_folder, found.certificate, found.heads, candidate=candidate))
    kept = None if plan == "small first" else unconfirmed_escalation(project, run_folder, found.certificate, candidate)
    if kept is not None:
        found = found.model_copy(update={"certificate": kept})
        project.progress.log(f"below the threshold: {kept.below} ({kept.below_why})")
        found.certificate.save(run_folder.path / CERTIFICATE)
        found.save(run_folder.path / CERTIFIED)
        asyncio.run(measure_router(project, run_folder, kept, found.heads, candidate=candidate))
    if promotion is not None:
        attach_certified(promotion, found, run_folder)
    return found.certificate


def unconfirmed_escalation(
    project: Project, run_folder: RunFolder, certificate: Certificate, candidate: str
) -> Certificate | None:
    """Return the certificate with what is below its threshold kept small, if test rows do not confirm the escalation.

    The candidate passed its gate alone, so ties, and a Router that is right less often than the candidate by itself on
    the same test rows, are won by the candidate. None: nothing changes, also where a guarantee that task.yaml sets, or
    a limit of it, decides.
    """
    routed, alone = run_folder.evaluation("routed", "test"), run_folder.evaluation(candidate, "test")
    limits = project.file.routing.guarantee.limits
    decided = "accuracy_loss" in limits or project.file.binds_answers
    if routed is None or alone is None or certificate.below != "escalate" or decided:
        return None
    pairs = [(row.correct, alone.by_key[row.key].correct) for row in routed.rows if row.key in alone.by_key]
    n_routed, n_alone = sum(ours for ours, _ in pairs), sum(theirs for _, theirs in pairs)
    if not pairs or n_routed > n_alone:
        return None
    stays: BelowAction = "abstain" if project.file.routing.person else "keep"
    why = (
        f"{certificate.below_why}; but on {len(pairs)} test rows it is right on {n_routed} with that and on {n_alone} "
        "without, so they stay small"
    )
    return certificate.model_copy(update={"below": stays, "below_why": why})


def certify_candidate(project: Project, run_folder: RunFolder, candidate: str, *, alone: bool) -> Certified:
    """Certify a candidate behind the smaller ones that are ahead of it; the certificate goes into the run folder.

    `alone`: it passed its gate by itself, so what is not certified may stay small, unless task.yaml sets a guarantee
    and there is a large model. This counts as a look at the rows. Raise StageMissing if a stage of the cascade was
    not evaluated.
    """
    routing, manifest = project.file.routing, read_manifest(run_folder.model_folder(candidate))
    joined, binds = find_joined(project, run_folder, candidate), project.file.binds_answers
    heads, confidences, foreign = asyncio.run(_fit_heads(project, run_folder, candidate, joined.rows))
    candidates = {**{name: name for name in routing.ahead}, FINE_TUNED: candidate}
    selection = _selection_drafts(run_folder, candidates, confidences, like=_like_calibration(project))
    rows = asyncio.run(build_calibration_set(project, run_folder, joined, candidates, heads, confidences))
    certificate = certify(
        rows.drafts,
        rows.large,
        rows.guarantee,
        model_fingerprint=manifest.weights_fingerprint,
        # Of a candidate that failed its gate by itself only what is certified stays; a person is the last resort.
        person=routing.person if alone and not binds else project.file.large is None,
        alone=alone and not binds,
        usd_per_wrong_answer=routing.usd_per_wrong_answer,
        labels=rows.labels,
        looks=run_folder.path.parent / LOOKS,
        shared=joined.look,
        n_once=joined.n_test,
        selection=selection,
        foreign=foreign.confidence,
        portion="small" if routing.second_look_after else _portion(rows.guarantee, selection, rows.drafts, joined.look),
    )
    update: dict[str, Any] = {
        "temperature": manifest.temperature,
        "filters": rows.filters,
        "limits_of_validity": (*rows.limits, *certificate.limits_of_validity),
        "foreign": _with_most_outside(certificate, rows.doubts, foreign.n_outside),
    }
    if alone and not certificate.issued and not binds:  # the gate's proof is about all answers
        why = "no certificate, so no threshold: the candidate passed its gate alone and answers every request"
        update |= {"below": "keep", "below_why": why}
    certificate = certificate.model_copy(update=update)
    certificate.save(run_folder.path / CERTIFICATE)
    project.progress.log(f"certificate of {candidate}: {certificate.why}")
    project.progress.log(f"below the threshold: {certificate.below} ({certificate.below_why})")
    plan: Literal["small alone", "small first"] = "small alone" if alone else "small first"
    found = Certified(candidate=candidate, plan=plan, certificate=certificate, heads=heads, reference=rows.reference)
    if routing.second_look_after:
        counted = [*rows.drafts[-1].rows, *(selection[-1].rows if selection else ())]
        told = {"confidence": {row.key: row.confidence or 0.0 for row in counted}}
        found = found.model_copy(update={**told, "foreign": tuple(map(tuple, foreign.confidence))})
        KnownTexts.of(project).save(run_folder.path / KNOWN_TEXTS)
    found.save(run_folder.path / CERTIFIED)
    return found


def attach_certified(promotion: Promotion, found: Certified, run_folder: RunFolder) -> None:
    """Attach the certificate, the heads and the reference of live traffic to the version that is or goes live.

    What a server needs of the run goes with them, where the registry is not on this machine: models of words and
    sentence encoders, which may answer first or are asked about the others' answers, and what recognises the task.
    """
    kept = {PROFILE_FOLDER, GAIN, *(run_folder.model_folder(name).name for name in CHEAP)}
    paths = [path for path in run_folder.path.iterdir() if path.name in kept or path.suffix == ".json"]
    versions.attach_folder(promotion.name, promotion.version, RUN, paths)
    for filename, record in ((CERTIFICATE, found.certificate), (HEADS, found.heads), (REFERENCE, found.reference)):
        versions.attach(promotion.name, promotion.version, filename, record.model_dump_json(indent=2).encode())


def _selection_drafts(
    run_folder: RunFolder,
    candidates: Mapping[str, str],
    confidences: Mapping[str, Mapping[str, float]],
    *,
    like: Collection[str] | None = None,
) -> list[Evaluation] | None:
    """Return the stages' answers to the rows that choose; None if one was not evaluated on them.

    Rows that not every stage has answered without having seen them are left out, and those with other keys than `like`.
    """
    found = [(stage, chosen_by(run_folder, candidate)) for stage, candidate in candidates.items()]
    there = [(stage, one) for stage, one in found if one is not None]
    if len(there) < len(found):
        return None
    common = set.intersection(*({row.key for row in one.rows} for _, one in there))
    common = common if like is None else common & set(like)
    drafts = []
    for stage, one in there:
        rows = tuple(row for row in one.rows if row.key in common)
        scores = {key: value for key, value in confidences.get(stage, {}).items() if key in common}
        drafts.append(with_confidences(one.model_copy(update={"rows": rows}), scores))
    return drafts


def _like_calibration(project: Project) -> set[str] | None:
    """Return the keys of the rows that choose and are like those that certify; None if all are."""
    return {example.key for example in project.rows.selection.examples} if own_validation(project) else None


def _portion(
    guarantee: Guarantee, selection: Sequence[Evaluation] | None, drafts: Sequence[Evaluation], look: SharedLook
) -> Portion:
    """Return the part of the level that this look is worth: too few rows keep the large one for a later look.

    The rows that choose decide it, and how many certify; no answer of a certifying row does.
    """
    if not selection or len(drafts) > 1 or set(guarantee.limits) != {"error"} or guarantee.grouped_by:
        return "large"
    level = LARGE * look.part * (1 - guarantee.confidence)
    said = np.array([row.confidence or 0.0 for row in selection[-1].rows])
    right = np.array([row.correct for row in selection[-1].rows], dtype=bool)
    chance = chance_to_show(said, right, len(drafts[-1].rows), guarantee.limits["error"], level)
    return "large" if chance >= MIN_CHANCE else "small"


def _with_most_outside(certificate: Certificate, own: Sequence[float], n_outside: int) -> ForeignAccepted | None:
    """Return what is said of foreign rows, with the share of requests that may look foreign; `own` are doubts."""
    foreign, share = certificate.foreign, certificate.guarantee.max_foreign_share
    if foreign is None or not share:
        return foreign
    counts = (sum(doubt > KEEP_SHARE for doubt in own), len(own))
    return foreign.model_copy(update={"max_outside": max_outside(share, counts, (n_outside, foreign.n))})


async def _fit_heads(
    project: Project, run_folder: RunFolder, candidate: str, rows: Dataset
) -> tuple[ConfidenceHeads, dict[str, dict[str, float]], ForeignDrafts]:
    """Return what is fitted on selection rows, and confidences as they are served, by stage and key of the row."""
    profile = fit_profile(project, run_folder)
    stages = cascade_stages(project, run_folder, get_candidate(candidate).load(project, run_folder))
    try:
        names = {**{name: name for name in project.file.routing.ahead}, stages[-1].name: candidate}
        folds = {stage: one for stage, name in names.items() if (one := run_folder.folds(name)) is not None}
        heads, held = await fit_heads(project, stages, profile, folds=folds)
        if any(policy.uses_gain for policy in project.file.routing.policies):
            await fit_gain(project, held, stages[-1].name, run_folder.path)
        chosen_on = await head_confidences(heads, stages, held.rows, held.drafts, profile=profile)
        found = await head_confidences(heads, stages, rows, profile=profile)
        said = {stage: {**chosen_on[stage], **by_key} for stage, by_key in found.items()}
        return heads, said, await foreign_drafts(project, heads, stages, profile)
    finally:
        for stage in stages:
            await stage.model.aclose()
