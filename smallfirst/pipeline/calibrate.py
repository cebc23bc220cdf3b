"""The calibration stage: certificate and traffic reference of the promoted model, then the Router.

Everything is attached to the model's version in the registry, so that what is served is what was certified.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import numpy as np

from smallfirst.data.dataset import fold_text
from smallfirst.models.manifest import read_manifest
from smallfirst.pipeline.calibration_set import CalibrationSet, build_calibration_set
from smallfirst.pipeline.confidence_heads import GAIN, HEADS, ConfidenceHeads
from smallfirst.pipeline.evaluate import measure_router
from smallfirst.pipeline.plans.joined_rows import LOOKS, find_joined
from smallfirst.pipeline.router_setup import CHEAP, PROFILE_FOLDER, REFERENCE, RUN, TrafficReference
from smallfirst.project.project import Project, shown_as
from smallfirst.project.run_folder import CERTIFICATE, Promotion, RunFolder
from smallfirst.records import Record, fingerprint
from smallfirst.registry import versions
from smallfirst.routing.certificate.certificate import BelowRule, Certificate, certify
from smallfirst.routing.certificate.looks import LARGE, Portion
from smallfirst.routing.certificate.threshold_search import chance_to_show

CERTIFIED = "certified.json"
"""File of the latest Certified in a run folder."""
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
    texts: frozenset[str] = frozenset()
    """Of all rows (`known_texts`), where there may be a second look: none certifies as one that traffic brought."""


def known_texts(project: Project) -> frozenset[str]:
    """Return the fingerprints of the texts of all rows, as `ShadowRow.text` has them."""
    rows = project.rows
    parts = (rows.train, rows.selection, rows.calibration, rows.test)
    return frozenset(fingerprint(fold_text(row.text)) for part in parts for row in part.examples)


@shown_as("certifying")
def calibrate_stage(
    project: Project, run_folder: RunFolder, promotion: Promotion | None = None, *, candidate: str = ""
) -> Certificate:
    """Certify a model and measure the Router on test rows; return the certificate.

    It is `candidate`, which passed its gate alone and is not registered yet; else that of a `promotion`, left out the
    run's own, to whose version the certificate is attached. Raise StageMissing if a stage was not evaluated.
    """
    promotion = promotion or (None if candidate else run_folder.promoted())
    plan = promotion.plan if promotion else "small alone"
    candidate = promotion.candidate if promotion else candidate
    found = certify_candidate(project, run_folder, candidate, alone=plan == "small alone")
    asyncio.run(measure_router(project, run_folder, found.certificate, found.heads, candidate=candidate))
    kept = None if plan == "small first" else unconfirmed_escalation(project, run_folder, found.certificate, candidate)
    if kept is not None:
        found = found.model_copy(update={"certificate": kept})
        _save(project, run_folder, found)
        asyncio.run(measure_router(project, run_folder, kept, found.heads, candidate=candidate))
    if promotion is not None:
        attach_certified(promotion, found, run_folder)
    return found.certificate


def unconfirmed_escalation(
    project: Project, run_folder: RunFolder, certificate: Certificate, candidate: str
) -> Certificate | None:
    """Return the certificate with what is below its threshold kept small, if test rows do not confirm the escalation.

    The candidate passed its gate alone, so it wins ties with the Router on the same test rows. None: nothing changes,
    also where a guarantee that task.yaml sets, or a limit of it, decides.
    """
    routed, alone = run_folder.evaluation("routed", "test"), run_folder.evaluation(candidate, "test")
    routing = project.file.routing
    decided = "accuracy_loss" in routing.guarantee.limits or project.file.binds_answers
    if routed is None or alone is None or certificate.below != "escalate" or decided:
        return None
    pairs = [(row.correct, alone.by_key[row.key].correct) for row in routed.rows if row.key in alone.by_key]
    n_routed, n_alone = sum(ours for ours, _ in pairs), sum(theirs for _, theirs in pairs)
    if not pairs or n_routed > n_alone:
        return None
    why = (
        f"{certificate.below_why}; but on {len(pairs)} test rows it is right on {n_routed} with that and on {n_alone} "
        "without, so they stay small"
    )
    return certificate.model_copy(update={"below": "abstain" if routing.person else "keep", "below_why": why})


def certify_candidate(project: Project, run_folder: RunFolder, candidate: str, *, alone: bool) -> Certified:
    """Certify a candidate behind the smaller ones ahead of it, a look at the rows; the run folder keeps what it finds.

    `alone`: it passed its gate by itself, so what is not certified may stay small, unless task.yaml sets a guarantee
    and there is a large model. Raise StageMissing if a stage was not evaluated.
    """
    routing, binds = project.file.routing, project.file.binds_answers
    manifest = read_manifest(run_folder.model_folder(candidate))
    joined = find_joined(project, run_folder, candidate)
    rows = asyncio.run(build_calibration_set(project, run_folder, candidate, joined))
    # Of a candidate that failed its gate by itself only what is certified stays; a person is the last resort.
    person = routing.person if alone and not binds else project.file.large is None
    certificate = certify(
        rows.drafts,
        rows.large,
        rows.guarantee,
        model_fingerprint=manifest.weights_fingerprint,
        labels=rows.labels,
        selection=rows.selection,
        foreign=rows.foreign,
        below=BelowRule(alone and not binds, person, routing.usd_per_wrong_answer),
        looks=run_folder.path.parent / LOOKS,
        portion="small" if routing.second_look_after else look_portion(rows, joined.look.part),
        shared=joined.look,
        n_once=joined.n_test,
    )
    rests_on = (*rows.tells["limits_of_validity"], *certificate.limits_of_validity)
    update: dict[str, Any] = {**rows.tells, "limits_of_validity": rests_on}
    if alone and not certificate.issued and not binds:  # the gate's proof is about all answers
        why = "no certificate, so no threshold: the candidate passed its gate alone and answers every request"
        update |= {"below": "keep", "below_why": why}
    certificate = certificate.model_copy(update=update)
    project.progress.log(f"certificate of {candidate}: {certificate.why}")
    found = Certified(
        candidate=candidate,
        plan="small alone" if alone else "small first",
        certificate=certificate,
        heads=rows.heads,
        reference=rows.reference,
    )
    if routing.second_look_after:
        last = [stages[-1] for stages in (rows.drafts, rows.selection) if stages]
        counted = {row.key: row.confidence or 0.0 for one in last for row in one.rows}
        update = {"confidence": counted, "foreign": tuple(map(tuple, rows.foreign)), "texts": known_texts(project)}
        found = found.model_copy(update=update)
    _save(project, run_folder, found)
    return found


def look_portion(rows: CalibrationSet, part: float) -> Portion:
    """Return the part of the level that this look is worth: too few rows keep the large one for a later look.

    The rows that choose decide it, and how many certify; no answer of a certifying row does. `part`: of a shared look.
    """
    guarantee, selection = rows.guarantee, rows.selection
    if not selection or len(selection) > 1 or set(guarantee.limits) != {"error"} or guarantee.per_group:
        return "large"
    said = np.array([row.confidence or 0.0 for row in selection[-1].rows])
    right = np.array([row.correct for row in selection[-1].rows], dtype=bool)
    level, limit = LARGE * part * (1 - guarantee.confidence), guarantee.limits["error"]
    return "large" if chance_to_show(said, right, len(rows.drafts[-1].rows), limit, level) >= MIN_CHANCE else "small"


def _save(project: Project, run_folder: RunFolder, found: Certified) -> None:
    project.progress.log(f"below the threshold: {found.certificate.below} ({found.certificate.below_why})")
    found.certificate.save(run_folder.path / CERTIFICATE)
    found.save(run_folder.path / CERTIFIED)


def attach_certified(promotion: Promotion, found: Certified, run_folder: RunFolder) -> None:
    """Attach the certificate, the heads and the reference of live traffic to the version that is or goes live.

    With what a server needs of the run where that is not on its machine: cheap models, and what recognises the task.
    """
    kept = {PROFILE_FOLDER, GAIN, *(run_folder.model_folder(name).name for name in CHEAP)}
    paths = [path for path in run_folder.path.iterdir() if path.name in kept or path.suffix == ".json"]
    versions.attach_folder(promotion.name, promotion.version, RUN, paths)
    for filename, record in ((CERTIFICATE, found.certificate), (HEADS, found.heads), (REFERENCE, found.reference)):
        versions.attach(promotion.name, promotion.version, filename, record.model_dump_json(indent=2).encode())
